package disktest

import "bytes"

// Edit gives a copy of the disk with bytes changed as a fuzzer wants: four bytes an
// edit, three of them the place, taken in the first within bytes, and one the change. The
// input of the fuzzer stays small that way, and the disk mostly sound.
func Edit(disk, edits []byte, within int) []byte {
	out := bytes.Clone(disk)
	within = min(within, len(out))
	for ; len(edits) >= 4 && within > 0; edits = edits[4:] {
		out[(int(edits[0])|int(edits[1])<<8|int(edits[2])<<16)%within] ^= edits[3]
	}
	return out
}
