package hostinfo

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSubordinate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, lines string
		want        []IDRange
		fault       string
	}{
		{"by name", "lxd:100000:65536\nroot:1000000:1000000000\n", []IDRange{{1000000, 1000000000}}, ""},
		{"by number", "0:1000000:65536\n", []IDRange{{1000000, 65536}}, ""},
		{"two", "root:1:2\nroot:9:1\n", []IDRange{{1, 2}, {9, 1}}, ""},
		{"others", "user:100000:65536\n", nil, ""},
		{"no file", "-", nil, ""},
		{"garbage", "a:1:1\nroot:x:y\n", nil, "line 2 has no valid range"},
		{"too few fields", "root:1\n", nil, "line 1 is not of the form"},
		{"beyond the last id", "root:4294967295:2\n", nil, "no valid range"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "subuid")
			if test.lines != "-" {
				require.NoError(t, os.WriteFile(file, []byte(test.lines), 0o600))
			}
			got, err := subordinate(file, "root")
			if test.fault != "" {
				require.ErrorContains(t, err, test.fault)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}
