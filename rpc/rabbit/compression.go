package rabbit

import (
	"bytes"
	"compress/bzip2"
	"compress/zlib"
	"fmt"
	"io"

	"github.com/streadway/amqp"
)

// compressionHeader announces the compression of a body (kombu/compression.py).
// kombu's "gzip" is zlib.
const (
	compressionHeader = "compression"
	compressionZlib   = "application/x-gzip"
	compressionBzip2  = "application/x-bz2"
)

// maxBody bounds a decompressed body; RabbitMQ takes no message above 128 MiB.
const maxBody = 128 << 20

// compress encodes a body if the option kombu_compression asks for it, always with
// zlib: receivers go by the header, and there is no bzip2 writer.
func compress(option string, body []byte) (amqp.Table, []byte, error) {
	if option == "" {
		return nil, body, nil
	}
	var buf bytes.Buffer
	w := zlib.NewWriter(&buf)
	if _, err := w.Write(body); err != nil {
		return nil, nil, fmt.Errorf("compress message: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, nil, fmt.Errorf("compress message: %w", err)
	}
	return amqp.Table{compressionHeader: compressionZlib}, buf.Bytes(), nil
}

// decompress decodes a body by its headers.
func decompress(headers amqp.Table, body []byte) ([]byte, error) {
	method, _ := headers[compressionHeader].(string)
	var r io.Reader
	switch method {
	case "":
		return body, nil
	case compressionZlib:
		z, err := zlib.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r = z
	case compressionBzip2:
		r = bzip2.NewReader(bytes.NewReader(body))
	default:
		return nil, fmt.Errorf("compression %q is not supported", method)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(out) > maxBody {
		return nil, fmt.Errorf("message is larger than %d bytes", maxBody)
	}
	return out, nil
}
