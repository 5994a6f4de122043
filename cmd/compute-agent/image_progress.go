package main

import (
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/control"
)

const (
	barWidth = 40
	barRate  = 150 * time.Millisecond
)

// bars are progress bars on the terminal; without one they are nothing.
type bars struct{ p *mpb.Progress }

// newBars draws on standard error, when that is a terminal and people read the output.
func newBars(people bool) *bars {
	if !people || !isTerminal(os.Stderr) {
		return &bars{}
	}
	return &bars{p: mpb.New(mpb.WithOutput(os.Stderr), mpb.WithWidth(barWidth), mpb.WithRefreshRate(barRate))}
}

// wait ends the drawing.
func (b *bars) wait() {
	if b.p != nil {
		b.p.Wait()
	}
}

// bar is one of them; it may be nothing.
type bar struct{ b *mpb.Bar }

// add makes a bar for total bytes; -1 or 0: not known yet.
func (b *bars) add(name string, total int64) *bar {
	if b.p == nil {
		return &bar{}
	}
	const longest = 36
	return &bar{b: b.p.AddBar(max(total, 0),
		mpb.PrependDecorators(decor.Name(name[:min(len(name), longest)]+" ")),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.AverageSpeed(decor.SizeB1024(0), " % .1f"),
			decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), "")),
	)}
}

// progress shows how far the work is.
func (b *bar) progress(p control.Progress) {
	if b.b == nil {
		return
	}
	if p.Size > 0 {
		b.b.SetTotal(p.Size, false)
	}
	b.b.SetCurrent(p.Received)
}

// end completes the bar, or leaves it where it is.
func (b *bar) end(ok bool) {
	switch {
	case b.b == nil:
	case ok:
		b.b.SetTotal(-1, true)
	default:
		b.b.Abort(false)
	}
}

// reader counts what is read.
func (b *bar) reader(r io.Reader) io.Reader {
	if b.b == nil {
		return r
	}
	return b.b.ProxyReader(r)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
