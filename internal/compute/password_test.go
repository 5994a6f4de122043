package compute

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
)

// accounts gives the captured server's guest account files.
func (w *world) accounts(passwd, shadow string) (dir string) {
	w.t.Helper()
	dir = w.t.(*testing.T).TempDir()
	require.NoError(w.t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	for name, text := range map[string]string{"passwd": passwd, "shadow": shadow} {
		require.NoError(w.t, os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o600))
	}
	w.driver.SetRoot(uuid, dir)
	return dir
}

func shadowOf(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "etc", "shadow"))
	require.NoError(t, err)
	return string(b)
}

func TestSetAdminPassword(t *testing.T) {
	t.Parallel()
	w := built(t)
	dir := w.accounts("root:x:0:0::/root:/bin/sh\nadmin:x:1:1::/:/bin/sh\n", "root:*:1::::::\nadmin:*:1::::::\n")
	_, err := w.operate("set_admin_password", "updating_password", map[string]any{"new_pass": "s3cret"})
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	text := shadowOf(t, dir)
	require.True(t, strings.HasPrefix(text, "root:$6$"), text)
	require.Contains(t, text, "\nadmin:*:")
	requireLines(t, `Instance.save task_state=null if task_state=["updating_password"]`, w.saves())
	require.Empty(t, w.sender.all(), "no notification, as in the capture")

	metadata := w.instance("system_metadata").SystemMetadata
	user := "admin"
	metadata["image_os_admin_user"] = &user
	w.nova.Update(uuid, map[string]any{"system_metadata": metadata})
	_, err = w.operate("set_admin_password", "updating_password", map[string]any{"new_pass": "s3cret"})
	require.NoError(t, err)
	require.Contains(t, shadowOf(t, dir), "\nadmin:$6$")
}

func TestSetAdminPasswordFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, reason string
		prepare      func(w *world)
	}{
		{"paused", "is not running", func(w *world) { w.driver.SetState(uuid, driver.PowerStatePaused) }},
		{"unknown here", "is not running", func(w *world) { require.NoError(w.t, w.driver.Destroy(w.t.Context(), uuid)) }},
		{"no such user", "no such user", func(w *world) { w.accounts("x:x:0:0:::\n", "") }},
		{"no accounts", "no /etc/passwd", func(w *world) { w.driver.SetRoot(uuid, w.t.(*testing.T).TempDir()) }},
		{"anything else", "error setting admin password", func(w *world) { w.driver.Fail("OpenRoot", "", errBoom) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := built(t)
			c.prepare(w)
			_, err := w.operate("set_admin_password", "updating_password", map[string]any{"new_pass": "s3cret"})
			require.True(t, exception.Is(err, "InstancePasswordSetFailed"), err)
			require.ErrorContains(t, err, c.reason)
			require.NotContains(t, err.Error(), "s3cret")
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid), "the task state is reset")
			require.Len(t, w.nova.Faults(), 1)
		})
	}
}
