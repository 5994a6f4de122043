package transfer

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// protocolVersion is what both ends must speak.
const protocolVersion = 1

// kind is the type of a frame: a byte, followed by the length of the body in four.
type kind byte

const (
	// From the destination.
	kindHello kind = 'H' // hello
	kindPass  kind = 'P' // send what changed
	kindLast  kind = 'L' // send what changed as soon as the guest has stopped
	kindAck   kind = 'A' // number of the last entry that was applied
	kindFail  kind = 'F' // failure: the destination gives up

	// From the source.
	kindWelcome kind = 'W'
	kindEntry   kind = 'E' // entry
	kindData    kind = 'D' // eight bytes of offset, content
	kindNames   kind = 'N' // names that the directory has, each ended by a zero byte
	kindEnd     kind = 'X' // end of an entry's data or names
	kindTree    kind = 'T' // number of the tree that follows, in a byte; a pass begins with the first
	kindDone    kind = 'Z' // passed: the pass is complete
	kindAlive   kind = 'K' // nothing to send yet
	kindRefuse  kind = 'R' // failure: the source gives up, or takes the ticket for wrong
)

const (
	// maxHeader bounds frames with JSON: an entry's extended attributes are most of it.
	maxHeader = 4 << 20
	// chunk is the content of a data frame.
	chunk = 256 << 10
)

// hello begins a connection.
type hello struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Token   string `json:"token"`
}

// passed ends a pass.
type passed struct {
	Entries int   `json:"entries"`
	Bytes   int64 `json:"bytes"`
}

// failure tells why an end gives up.
type failure struct {
	Reason string `json:"reason"`
}

// Types of entries.
const (
	typeDir      = "d" // make the directory, if it is not there
	typeDirEnd   = "D" // what is in the directory has been sent: give it its attributes
	typeFile     = "f"
	typeLink     = "l" // symbolic link
	typeHard     = "h" // another name of a file that the destination has
	typeFIFO     = "p"
	typeWhiteout = "w" // a name that the layer takes away from its image
)

// text is a name of the file system: any bytes, which JSON's strings are not.
type text string

// MarshalText implements encoding.TextMarshaler.
func (t text) MarshalText() ([]byte, error) { return []byte(strconv.QuoteToASCII(string(t))), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *text) UnmarshalText(b []byte) error {
	s, err := strconv.Unquote(string(b))
	*t = text(s)
	return err
}

// xattr is an extended attribute.
type xattr struct {
	Name  text   `json:"k"`
	Value []byte `json:"v"`
}

// entry is one name of the tree.
type entry struct {
	Seq    uint64  `json:"n"`
	Type   string  `json:"t"`
	Path   text    `json:"p"`
	Target text    `json:"l,omitempty"` // of links
	Size   int64   `json:"s,omitempty"`
	Mode   uint32  `json:"m,omitempty"` // permissions, setuid, setgid, sticky
	UID    uint32  `json:"u,omitempty"` // as the guest sees it
	GID    uint32  `json:"g,omitempty"`
	MTime  int64   `json:"c,omitempty"` // nanoseconds
	Xattrs []xattr `json:"x,omitempty"`
	// Names: the names that the directory has follow; others are to go.
	Names bool `json:"names,omitempty"`
}

// errFrame is a message that the protocol does not know at this point.
var errFrame = errors.New("unexpected message from the other host")

// codec reads and writes frames. Reading and writing may go on side by side.
type codec struct {
	r *bufio.Reader
	w *bufio.Writer
}

func newCodec(c io.ReadWriter) *codec {
	return &codec{r: bufio.NewReaderSize(c, chunk+64), w: bufio.NewWriterSize(c, chunk+64)}
}

func (c *codec) write(k kind, body []byte) error {
	var head [5]byte
	head[0] = byte(k)
	binary.BigEndian.PutUint32(head[1:], uint32(len(body))) //nolint:gosec // bodies are a few MiB at most
	_, err := c.w.Write(head[:])
	if err == nil {
		_, err = c.w.Write(body)
	}
	return onWire(err)
}

func (c *codec) flush() error { return onWire(c.w.Flush()) }

func (c *codec) writeJSON(k kind, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxHeader {
		return fmt.Errorf("a message of %d bytes is too long to send", len(body))
	}
	return c.write(k, body)
}

// send writes a message at once.
func (c *codec) send(k kind, v any) error {
	if err := c.writeJSON(k, v); err != nil {
		return err
	}
	return c.flush()
}

// read returns the next frame. buf is used for the body if it is large enough.
func (c *codec) read(buf []byte) (kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, &wireError{err}
	}
	k, size := kind(head[0]), binary.BigEndian.Uint32(head[1:])
	limit := uint32(maxHeader)
	if k == kindData || k == kindNames {
		limit = chunk + 8
	}
	if size > limit {
		return k, nil, fmt.Errorf("%w: %q of %d bytes", errFrame, k, size)
	}
	if uint32(len(buf)) < size { //nolint:gosec // buffers are small
		buf = make([]byte, size)
	}
	if _, err := io.ReadFull(c.r, buf[:size]); err != nil {
		return k, nil, &wireError{err}
	}
	return k, buf[:size], nil
}

func onWire(err error) error {
	if err == nil {
		return nil
	}
	return &wireError{err}
}

// wireError is a failure of the connection, which another connection mends.
type wireError struct{ error }

// Unwrap gives the failure itself.
func (e *wireError) Unwrap() error { return e.error }
