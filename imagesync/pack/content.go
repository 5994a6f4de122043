package pack

import (
	"context"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/fdio"
)

// maxExtents bounds the map of a sparse file: readers of the format (archive/tar) take
// 1 MiB of it. What comes after so many holes is written as data.
const maxExtents = 16 << 10

// extent is a part of a file that is not a hole.
type extent struct{ offset, size int64 }

// content writes a file's header and bytes. The header promises h.size bytes; a file
// that has become shorter is filled up with zeros, as tar does.
func (p *packer) content(fd int, h header, st *unix.Stat_t) error {
	extents := []extent{{0, h.size}}
	if st.Blocks*512 < h.size {
		extents = dataOf(fd, h.size)
	}
	if len(extents) == 1 && extents[0] == (extent{0, h.size}) {
		if err := p.w.header(h); err != nil {
			return err
		}
		return p.data(fd, extents, h.size)
	}
	sparse, stored := sparseMap(extents, h.size)
	h.sparse, h.realSize, h.size = true, h.size, int64(len(sparse))+stored
	if err := p.w.header(h); err != nil {
		return err
	}
	if _, err := p.w.w.Write(sparse); err != nil {
		return err
	}
	return p.data(fd, extents, stored)
}

// dataOf finds the parts of a file that are not holes.
func dataOf(fd int, size int64) []extent {
	var extents []extent
	for offset := int64(0); offset < size; {
		start, err := unix.Seek(fd, offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && start >= size {
			break // the rest is a hole
		}
		end := size
		if err != nil { // the file system does not tell
			start = offset
		} else if len(extents) < maxExtents-1 {
			if hole, herr := unix.Seek(fd, start, unix.SEEK_HOLE); herr == nil {
				end = min(hole, size)
			}
		}
		if end <= start { // changed meanwhile
			break
		}
		extents = append(extents, extent{start, end - start})
		offset = end
	}
	return extents
}

// sparseMap is the map in front of the data in GNU's sparse format 1.0: decimal numbers, a
// line each, filled up to a block. stored is the size of the data.
func sparseMap(extents []extent, size int64) (text []byte, stored int64) {
	for _, e := range extents {
		stored += e.size
	}
	if n := len(extents); n == 0 || extents[n-1].offset+extents[n-1].size < size {
		extents = append(extents[:n:n], extent{size, 0}) // GNU tar takes the size from the last
	}
	text = append(strconv.AppendInt(text, int64(len(extents)), 10), '\n')
	for _, e := range extents {
		text = append(strconv.AppendInt(text, e.offset, 10), '\n')
		text = append(strconv.AppendInt(text, e.size, 10), '\n')
	}
	return append(text, make([]byte, padding(int64(len(text))))...), stored
}

// data writes the extents' bytes, stored of them, and the padding.
func (p *packer) data(fd int, extents []extent, stored int64) error {
	short := false
	for _, e := range extents {
		for offset, left := e.offset, e.size; left > 0; {
			if p.ctx.Err() != nil {
				return context.Cause(p.ctx)
			}
			chunk := p.buf[:min(int64(len(p.buf)), left)]
			n, err := fdio.ReadAt(fd, chunk, offset)
			if err != nil {
				return err
			}
			if n < len(chunk) {
				clear(chunk[n:])
				short = true
			}
			if _, err := p.w.w.Write(chunk); err != nil {
				return err
			}
			offset, left = offset+int64(len(chunk)), left-int64(len(chunk))
			p.packed += int64(len(chunk))
			if p.o.Progress != nil {
				p.o.Progress(p.packed)
			}
		}
	}
	if short {
		p.stats.Changed++
	}
	return p.w.pad(stored)
}
