package pack

import (
	"bufio"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Types of entries (POSIX pax, ustar interchange format).
const (
	kindFile     = '0'
	kindHardlink = '1'
	kindSymlink  = '2'
	kindDir      = '5'
	kindFifo     = '6'
	kindPAX      = 'x'
)

const (
	blockSize = 512
	// maxOctal7 and maxOctal11 are the largest numbers of the header's fields.
	maxOctal7  = 1<<21 - 1
	maxOctal11 = 1<<33 - 1
	nameSize   = 100
	prefixSize = 155
)

// header is one entry.
type header struct {
	name, link string
	kind       byte
	mode       uint32
	uid, gid   uint32
	size       int64 // bytes that follow
	mtime      time.Time
	xattrs     map[string]string

	sparse   bool
	realSize int64 // of a sparse file
}

// archive writes the tar format. archive/tar refuses to write sparse files, which is why
// this is ours.
type archive struct {
	w *bufio.Writer
}

// header writes an entry's header, preceded by PAX records for what does not fit into it.
func (a *archive) header(h header) error {
	records := map[string]string{}
	for name, value := range h.xattrs {
		records["SCHILY.xattr."+name] = value
	}
	name, prefix, fits := splitName(h.name)
	if h.sparse {
		records["GNU.sparse.major"], records["GNU.sparse.minor"] = "1", "0"
		records["GNU.sparse.name"] = h.name
		records["GNU.sparse.realsize"] = strconv.FormatInt(h.realSize, 10)
		name, prefix = "GNUSparseFile.0/"+truncate(h.name[strings.LastIndexByte(h.name, '/')+1:], 64), ""
	} else if !fits {
		records["path"] = h.name
		name, prefix = truncate(h.name, nameSize), ""
	}
	if !plain(h.link, nameSize) {
		records["linkpath"] = h.link
	}
	if h.uid > maxOctal7 {
		records["uid"] = strconv.FormatUint(uint64(h.uid), 10)
	}
	if h.gid > maxOctal7 {
		records["gid"] = strconv.FormatUint(uint64(h.gid), 10)
	}
	if h.size > maxOctal11 {
		records["size"] = strconv.FormatInt(h.size, 10)
	}
	if s := h.mtime.Unix(); h.mtime.Nanosecond() != 0 || s < 0 || s > maxOctal11 {
		records["mtime"] = paxTime(h.mtime)
	}
	if len(records) > 0 {
		text := paxRecords(records)
		pax := header{kind: kindPAX, mode: 0o644, size: int64(len(text)), mtime: time.Unix(0, 0)}
		if err := a.block(pax, "PaxHeaders.0/"+truncate(h.name[strings.LastIndexByte(strings.TrimSuffix(h.name, "/"), '/')+1:], 64), ""); err != nil {
			return err
		}
		if err := a.body(text); err != nil {
			return err
		}
	}
	return a.block(h, name, prefix)
}

// file writes an entry whose content is at hand.
func (a *archive) file(h header, content []byte) error {
	if err := a.header(h); err != nil {
		return err
	}
	return a.body(content)
}

func (a *archive) body(content []byte) error {
	if _, err := a.w.Write(content); err != nil {
		return err
	}
	return a.pad(int64(len(content)))
}

var zeros [2 * blockSize]byte

// pad fills up to a block after size bytes.
func (a *archive) pad(size int64) error {
	_, err := a.w.Write(zeros[:padding(size)])
	return err
}

func padding(size int64) int64 { return -size & (blockSize - 1) }

// end writes the end mark.
func (a *archive) end() error {
	_, err := a.w.Write(zeros[:])
	return err
}

// block writes one ustar header.
func (a *archive) block(h header, name, prefix string) error {
	var b [blockSize]byte
	copy(b[0:100], name)
	octal(b[100:108], int64(h.mode))
	octal(b[108:116], int64(min(h.uid, maxOctal7)))
	octal(b[116:124], int64(min(h.gid, maxOctal7)))
	octal(b[124:136], min(h.size, maxOctal11))
	octal(b[136:148], min(max(h.mtime.Unix(), 0), maxOctal11))
	b[156] = h.kind
	copy(b[157:257], truncate(h.link, nameSize))
	copy(b[257:265], "ustar\x0000")
	copy(b[345:500], prefix)
	copy(b[148:156], "        ")
	var sum int64
	for _, c := range b {
		sum += int64(c)
	}
	octal(b[148:155], sum)
	_, err := a.w.Write(b[:])
	return err
}

// octal fills a field with digits and a NUL at its end.
func octal(field []byte, n int64) {
	field[len(field)-1] = 0
	for i := len(field) - 2; i >= 0; i-- {
		field[i] = '0' + byte(n&7)
		n >>= 3
	}
}

// splitName divides a name over the header's two fields; false: it does not fit.
func splitName(full string) (name, prefix string, fits bool) {
	if plain(full, nameSize) {
		return full, "", true
	}
	if !plain(full, nameSize+1+prefixSize) {
		return "", "", false
	}
	// The first slash that leaves a short enough rest; one at the end is the directory's mark.
	at := len(full) - nameSize - 1
	i := strings.IndexByte(full[at:max(at, len(full)-1)], '/')
	if i < 0 || at+i > prefixSize || at+i == 0 {
		return "", "", false
	}
	return full[at+i+1:], full[:at+i], true
}

// plain tells whether every reader understands the text in a field of that size.
func plain(s string, size int) bool {
	if len(s) > size {
		return false
	}
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func truncate(s string, size int) string { return s[:min(len(s), size)] }

// paxTime is seconds since 1970 with as many decimals as it takes.
func paxTime(t time.Time) string {
	s, ns := t.Unix(), int64(t.Nanosecond())
	if ns == 0 {
		return strconv.FormatInt(s, 10)
	}
	sign := ""
	if s < 0 {
		sign, s, ns = "-", -s-1, 1_000_000_000-ns
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, s, ns), "0")
}

// paxRecords encodes records as "<length> <key>=<value>\n", sorted; the length counts itself.
func paxRecords(records map[string]string) []byte {
	var out []byte
	for _, key := range slices.Sorted(maps.Keys(records)) {
		rest := len(" =\n") + len(key) + len(records[key])
		total := rest + len(strconv.Itoa(rest))
		if digits := len(strconv.Itoa(total)); rest+digits != total {
			total = rest + digits
		}
		out = strconv.AppendInt(out, int64(total), 10)
		out = append(out, ' ')
		out = append(out, key...)
		out = append(out, '=')
		out = append(out, records[key]...)
		out = append(out, '\n')
	}
	return out
}
