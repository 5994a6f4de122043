package treecopy

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
)

var shift = &copier{ids: storage.IDRange{Base: 1_000_000, Size: 65536}}

func le(words ...uint32) []byte {
	var out []byte
	for _, w := range words {
		out = binary.LittleEndian.AppendUint32(out, w)
	}
	return out
}

func TestShiftXattr(t *testing.T) {
	t.Parallel()
	const effective, netRaw = 1, 1 << 13
	for name, tc := range map[string]struct {
		attr     string
		in, want []byte // want nil: refused
	}{
		"other":                 {"user.x", []byte("v"), []byte("v")},
		"revision 2":            {"security.capability", le(capRevision2|effective, netRaw, 0, 0, 0), le(capRevision3|effective, netRaw, 0, 0, 0, 1_000_000)},
		"revision 3":            {"security.capability", le(capRevision3|effective, netRaw, 0, 0, 0, 7), le(capRevision3|effective, netRaw, 0, 0, 0, 1_000_007)},
		"revision 3, outside":   {"security.capability", le(capRevision3, 0, 0, 0, 0, 65536), nil},
		"revision 1":            {"security.capability", le(0x01000000, 0, 0), nil},
		"revision and length":   {"security.capability", le(capRevision3, 0, 0, 0, 0), nil},
		"revision and length 2": {"security.capability", le(capRevision2, 0, 0, 0, 0, 0), nil},
		"empty":                 {"security.capability", nil, nil},
		"list": {
			"system.posix_acl_access",
			le(2, 0x00060001, 1<<32-1, 0x00040002, 1001, 0x00040008, 5, 0x00040010, 1<<32-1),
			le(2, 0x00060001, 1<<32-1, 0x00040002, 1_001_001, 0x00040008, 1_000_005, 0x00040010, 1<<32-1),
		},
		"list, outside":   {"system.posix_acl_default", le(2, 0x00040002, 65536), nil},
		"list, cut":       {"system.posix_acl_default", le(2, 0x00040002), nil},
		"list, too short": {"system.posix_acl_default", []byte{2}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := shift.shiftXattr(tc.attr, tc.in)
			if tc.want == nil {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func FuzzShiftXattr(f *testing.F) {
	f.Add(le(capRevision2, 0, 0, 0, 0))
	f.Add(le(2, 0x00040002, 1001))
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, name := range []string{"security.capability", "system.posix_acl_access"} {
			if out, err := shift.shiftXattr(name, value); err == nil {
				require.GreaterOrEqual(t, len(out), len(value))
			}
		}
	})
}
