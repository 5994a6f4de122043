package treecopy

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/idattr"
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
	const revision2, revision3 = 0x02000001, 0x03000001
	for name, tc := range map[string]struct {
		attr     string
		in, want []byte // want nil: refused
	}{
		"other":               {"user.x", []byte("v"), []byte("v")},
		"revision 2":          {idattr.Capability, le(revision2, 1, 0, 0, 0), le(revision3, 1, 0, 0, 0, 1_000_000)},
		"revision 3":          {idattr.Capability, le(revision3, 1, 0, 0, 0, 7), le(revision3, 1, 0, 0, 0, 1_000_007)},
		"revision 3, outside": {idattr.Capability, le(revision3, 0, 0, 0, 0, 65536), nil},
		"no capability":       {idattr.Capability, nil, nil},
		"list":                {idattr.ACLAccess, le(2, 0x00040002, 1001), le(2, 0x00040002, 1_001_001)},
		"list, outside":       {idattr.ACLDefault, le(2, 0x00040002, 65536), nil},
		"list, cut":           {idattr.ACLDefault, le(2, 0x00040002), nil},
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
	same := &copier{ids: AsIs}
	got, err := same.shiftXattr(idattr.Capability, le(revision2, 1, 0, 0, 0))
	require.NoError(t, err)
	require.Equal(t, le(revision2, 1, 0, 0, 0), got)
}

func FuzzShiftXattr(f *testing.F) {
	f.Add(le(0x02000000, 0, 0, 0, 0))
	f.Add(le(2, 0x00040002, 1001))
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, name := range []string{idattr.Capability, idattr.ACLAccess} {
			if out, err := shift.shiftXattr(name, value); err == nil {
				require.GreaterOrEqual(t, len(out), len(value))
			}
		}
	})
}
