package diskimage

import (
	"bytes"
	"strings"
)

// fstabMark begins the lines that were taken out.
const fstabMark = "# no such device in a container: "

// containerFstab comments out the lines of an fstab whose source is a block device
// or a file to swap to: the root, which is mounted already, the partitions for
// booting, swap. systemd leaves such lines alone by itself only where /sys is
// read-only (src/fstab-generator/fstab-generator.c:parse_fstab), and a guest's is
// not: seen were a failed systemd-remount-fs and, after 90 s of waiting for the EFI
// partition, the emergency shell. File systems without a device and from the network stay.
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
