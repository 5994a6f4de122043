package idattr

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// words are 32-bit numbers as the kernel stores them.
func words(values ...uint32) []byte {
	var out []byte
	for _, v := range values {
		out = binary.LittleEndian.AppendUint32(out, v)
	}
	return out
}

const effective, netRaw = 1, 1 << 13

func TestCapabilities(t *testing.T) {
	t.Parallel()
	two := words(revision2|effective, netRaw, 0, 0, 0)
	three := words(revision3|effective, netRaw, 0, 0, 0, 7)
	root, named, err := CapabilityRoot(two)
	require.NoError(t, err)
	require.False(t, named)
	require.Zero(t, root)
	root, named, err = CapabilityRoot(three)
	require.NoError(t, err)
	require.True(t, named)
	require.Equal(t, uint32(7), root)
	for _, value := range [][]byte{two, three} {
		require.Equal(t, three, NameRoot(value, 7))
		require.Equal(t, two, DropRoot(value))
	}
	require.Equal(t, words(revision3|effective, netRaw, 0, 0, 0, 7), three, "what is passed is not changed")
	for name, value := range map[string][]byte{
		"revision 1": words(0x01000000, 0, 0), "2 of the length of 3": words(revision2, 0, 0, 0, 0, 0), "3 of the length of 2": words(revision3, 0, 0, 0, 0),
		"another": words(0x04000000, 0, 0, 0, 0), "cut": three[:23], "nothing": nil,
	} {
		_, _, err := CapabilityRoot(value)
		require.Error(t, err, name)
	}
}

func TestShiftACL(t *testing.T) {
	t.Parallel()
	errBeyond := errors.New("beyond")
	shift := func(id uint32) (uint32, error) {
		if id > 2000 {
			return 0, errBeyond
		}
		return id + 1_000_000, nil
	}
	list := words(2, 0x00060001, 1<<32-1, 0x00040002, 1001, 0x00040008, 5, 0x00040010, 1<<32-1)
	got, err := ShiftACL(list, shift)
	require.NoError(t, err)
	require.Equal(t, words(2, 0x00060001, 1<<32-1, 0x00040002, 1_001_001, 0x00040008, 1_000_005, 0x00040010, 1<<32-1), got)
	require.Equal(t, uint32(1001), binary.LittleEndian.Uint32(list[16:]), "what is passed is not changed")
	_, err = ShiftACL(words(2, 0x00040002, 2001), shift)
	require.ErrorIs(t, err, errBeyond)
	for name, value := range map[string][]byte{"cut": words(2, 0x00040002), "no header": {2}, "nothing": nil} {
		_, err := ShiftACL(value, shift)
		require.Error(t, err, name)
	}
}
