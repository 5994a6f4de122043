package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/compute-agent/compute-agent/internal/control"
)

// write prints a result in the format that was asked for.
func (f *outputFlags) write(w io.Writer, result any, human func(t *table)) error {
	switch f.format {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(result)
	case "yaml":
		text, err := yaml.Marshal(result)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	t := &table{w: tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)}
	human(t)
	return t.w.Flush()
}

// table writes for people.
type table struct{ w *tabwriter.Writer }

func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			_, _ = fmt.Fprint(t.w, "\t") // a failing terminal shows in Flush
		}
		_, _ = fmt.Fprint(t.w, printable(fmt.Sprint(c)))
	}
	_, _ = fmt.Fprintln(t.w)
}

// printable keeps what an image says of itself from controlling the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func (t *table) listing(l control.Listing, now time.Time) {
	t.row("IMAGE", "CONTENT", "ARCH", "DOWNLOAD", "ON DISK", "IMPORTED", "LAST USE", "USED BY")
	for _, i := range l.Images {
		users := fmt.Sprintf("%d servers", len(i.Instances))
		switch {
		case len(i.Instances) == 1:
			users = "1 server"
		case len(i.Instances) == 0 && i.Keep:
			users = "kept"
		case len(i.Instances) == 0:
			users = "-"
		}
		t.row(i.ID, i.Fingerprint[:min(12, len(i.Fingerprint))], i.Architecture, size(i.Size), size(i.DiskSize), age(now, i.Imported), age(now, i.LastUsed), users)
	}
	_ = t.w.Flush()
	for _, x := range l.Transfers {
		_, _ = fmt.Fprintf(t.w, "%s: importing, %s\n", x.ID, transferred(x.Received, x.Size, now.Sub(x.Started)))
	}
	_, _ = fmt.Fprintf(t.w, "%s in %s, %s on disk, %s free\n", count(len(l.Images), "image"), count(l.Contents, "content"), size(l.DiskSize), size(l.Free))
}

func transferred(received, total int64, elapsed time.Duration) string {
	text := size(received)
	if total > 0 {
		text += fmt.Sprintf(" of %s (%d %%)", size(total), received*100/total)
	}
	if seconds := elapsed.Seconds(); seconds >= 1 {
		text += fmt.Sprintf(", %s/s", size(int64(float64(received)/seconds)))
	}
	return text
}

func (t *table) image(i control.Image, now time.Time) {
	t.row("id:", i.ID)
	t.row("content:", i.Fingerprint)
	for _, algo := range slices.Sorted(maps.Keys(i.Hashes)) {
		if algo != "sha256" {
			t.row(algo+":", i.Hashes[algo])
		}
	}
	shared := "no other id"
	if len(i.SameContent) > 0 {
		shared = strings.Join(i.SameContent, ", ")
	}
	t.row("stored once with:", shared)
	t.row("architecture:", i.Architecture)
	t.row("download:", size(i.Size))
	t.row("on disk:", fmt.Sprintf("%s, %s, %s of content", size(i.DiskSize), count(i.Entries, "file"), size(i.UnpackedSize)))
	t.row("imported:", when(now, i.Imported))
	t.row("last use:", when(now, i.LastUsed))
	if i.Keep {
		t.row("kept:", "yes, only image rm removes it")
	}
	users := "no server"
	if len(i.Instances) > 0 {
		users = strings.Join(i.Instances, ", ")
	}
	t.row("used by:", users)
	t.row("root file system:", i.Path)
	if i.Metadata.CreationDate > 0 {
		t.row("created:", when(now, time.Unix(i.Metadata.CreationDate, 0)))
	}
	if i.Metadata.ExpiryDate > 0 {
		t.row("expires:", time.Unix(i.Metadata.ExpiryDate, 0).UTC().Format(time.DateTime)+" UTC")
	}
	for _, key := range slices.Sorted(maps.Keys(i.Metadata.Properties)) {
		t.row("property "+key+":", i.Metadata.Properties[key])
	}
	for _, path := range slices.Sorted(maps.Keys(i.Metadata.Templates)) {
		t.row("template "+path+":", i.Metadata.Templates[path].Template)
	}
}

func (t *table) pruned(verb string, pruned []control.Pruned, now time.Time) {
	if len(pruned) == 0 {
		t.row("no image is removed: all are in use, kept, or too young")
		return
	}
	var total int64
	t.row("IMAGE", "LAST USE", "FREED", "WHY")
	for _, p := range pruned {
		t.row(p.ID, age(now, p.LastUsed), size(p.Bytes), p.Reason)
		total += p.Bytes
	}
	_ = t.w.Flush()
	_, _ = fmt.Fprintf(t.w, "%s %s, %s\n", count(len(pruned), "image"), verb, size(total))
}

func (t *table) lines(verb string, ids []string) {
	for _, id := range ids {
		_, _ = fmt.Fprintf(t.w, "%s %s\n", verb, printable(id))
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// size prints bytes in the largest unit that leaves a number above one.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}

// age prints how long ago something was, in its largest unit.
func age(now, then time.Time) string {
	d := now.Sub(then)
	switch {
	case then.IsZero() || then.Unix() == 0:
		return "-"
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

func when(now, then time.Time) string {
	return fmt.Sprintf("%s UTC (%s)", then.UTC().Format(time.DateTime), age(now, then))
}
