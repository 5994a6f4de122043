package ephemeral

import (
	"os"
	"syscall"
)

// owner is the user id of a file.
func owner(info os.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid
	}
	return 0
}
