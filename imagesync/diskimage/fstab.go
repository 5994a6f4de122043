package diskimage

import (
	"bytes"
	"strings"
)

// fstabMark begins the lines that were taken out.
const fstabMark = "# no such device in a container: "

// containerFstab comments out the lines of an fstab whose source is a block device
// or a file to swap to: the root, which is mounted already, the partitions for booting, swap. In a
// container systemd leaves such lines alone by itself where /sys is read-only
// (src/fstab-generator/fstab-generator.c:parse_fstab), which is not so for nested
// guests; older releases remount the root, and other inits check it and stop when
// there is no device. File systems without a device and from the network stay.
func containerFstab(text []byte) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		if fields := strings.Fields(string(line)); len(fields) > 2 && (needsDevice(fields[0]) || fields[2] == "swap") {
			out.WriteString(fstabMark)
		}
		out.Write(line)
	}
	return out.Bytes()
}

func needsDevice(source string) bool {
	for _, prefix := range []string{"UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID=", "/dev/"} {
		if strings.HasPrefix(source, prefix) {
			return true
		}
	}
	return false
}
