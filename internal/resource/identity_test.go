package resource

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/novatest"
)

func write(t testing.TB, dir, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, identityFile), []byte(text), 0o600))
}

func TestReadIdentity(t *testing.T) {
	t.Parallel()
	other := "a1b2c3d4-0000-4000-8000-000000000002"
	for _, c := range []struct {
		name  string
		files []string // "" is no file
		want  string
		fault string
	}{
		{"none", []string{"", ""}, "", ""},
		{"one", []string{"", nodeUUID}, nodeUUID, ""},
		{"white space", []string{" " + nodeUUID + "\n\n"}, nodeUUID, ""},
		{"upper case", []string{"A1B2C3D4-0000-4000-8000-000000000001"}, nodeUUID, ""},
		{"two that agree", []string{nodeUUID, nodeUUID + "\n"}, nodeUUID, ""},
		{"two that disagree", []string{nodeUUID, other}, "", "disagree"},
		{"no UUID", []string{"node1"}, "", "does not hold a UUID"},
		{"too much", []string{"      " + nodeUUID}, "", "does not hold a UUID"},
		{"empty", []string{" "}, "", "does not hold a UUID"},
	} {
		var dirs []string
		for _, text := range c.files {
			dir := t.TempDir()
			dirs = append(dirs, dir)
			if text != "" {
				write(t, dir, text)
			}
		}
		got, err := readIdentity(dirs)
		if c.fault != "" {
			require.ErrorIs(t, err, ErrIdentity, c.name)
			require.ErrorContains(t, err, c.fault, c.name)
			continue
		}
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got, c.name)
	}
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, identityFile), 0o700))
	_, err := readIdentity([]string{dir})
	require.Error(t, err, "an unreadable file is no missing one")
	require.NotErrorIs(t, err, ErrIdentity)
}

func TestWriteIdentity(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "nova")
	require.NoError(t, writeIdentity(dir, nodeUUID))
	got, err := readIdentity([]string{dir})
	require.NoError(t, err)
	require.Equal(t, nodeUUID, got)
	require.ErrorIs(t, writeIdentity(dir, "other"), os.ErrExist, "a file is never replaced")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "no half-written file is left")
	info, err := entries[0].Info()
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode())
	require.Error(t, writeIdentity(filepath.Join(dir, identityFile), nodeUUID))
}

// record is a compute node as a nova-compute has left it.
func record(uuid, host, node string, changes map[string]any) novatest.Fields {
	fields := novatest.Fields{
		"id": novatest.Raw(31), "uuid": novatest.Raw(uuid), "host": novatest.Raw(host), "hypervisor_hostname": novatest.Raw(node),
		"deleted": novatest.Raw(false), "service_id": novatest.Raw(nil),
	}
	for name, value := range changes {
		fields[name] = novatest.Raw(value)
	}
	return fields
}

// TestStartIdentity: which node a start takes, by what the file and the database say.
func TestStartIdentity(t *testing.T) {
	t.Parallel()
	other := "a1b2c3d4-0000-4000-8000-000000000002"
	for _, c := range []struct {
		name    string
		release string
		file    string
		nodes   []novatest.Fields
		want    string // UUID; "": a new one
		fault   string
	}{
		{"nothing", "zed", "", nil, "", ""},
		{"nothing, later release", "2026.2", "", nil, "", ""},
		{"only the record, of a nova-compute before the file", "zed", "", []novatest.Fields{record(nodeUUID, testHost, testNode, nil)}, nodeUUID, ""},
		{"only the record, later release", "2024.1", "", []novatest.Fields{record(nodeUUID, testHost, testNode, nil)}, nodeUUID, ""},
		{"file and record", "2024.1", nodeUUID, []novatest.Fields{record(nodeUUID, testHost, testNode, nil)}, nodeUUID, ""},
		{"file only", "2024.1", nodeUUID, nil, nodeUUID, ""},
		{"deleted record", "2024.1", nodeUUID, []novatest.Fields{record(nodeUUID, testHost, testNode, map[string]any{"deleted": true, "mapped": 1})}, nodeUUID, ""},
		{"record of another host", "2024.1", nodeUUID, []novatest.Fields{record(nodeUUID, "old-name", testNode, nil)}, "", "belongs to host old-name"},
		{"several records", "zed", "", []novatest.Fields{
			record(nodeUUID, testHost, testNode, nil), record(other, testHost, "node1", nil),
		}, "", "has 2 compute nodes"},
		{"file of a machine with the same name", "2024.1", other, []novatest.Fields{record(nodeUUID, testHost, testNode, nil)}, "", "another UUID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, c.release, nil)
			if c.file != "" {
				write(t, f.opts.StatePath, c.file)
			}
			for _, n := range c.nodes {
				f.nova.SetNode(n)
			}
			err := f.Start(t.Context(), 7)
			if c.fault != "" {
				require.ErrorIs(t, err, ErrIdentity)
				require.ErrorContains(t, err, c.fault)
				return
			}
			require.NoError(t, err)
			uuid := f.ProviderUUID()
			if c.want != "" {
				require.Equal(t, c.want, uuid)
			}
			written, err := readIdentity(f.opts.IdentityDirs)
			require.NoError(t, err)
			require.Equal(t, uuid, written)
			node := f.nova.Node(uuid)
			require.NotEqual(t, "true", string(node["deleted"]), "a deleted record is revived")
			require.NotEqual(t, "1", string(node["mapped"]), "and discovered again")
			wantService := "null"
			if f.deps.Release.SendsServiceID {
				wantService = "7"
			}
			if got := node["service_id"]; got != nil || wantService == "7" {
				require.Equal(t, wantService, string(got))
			}
			p, ok := f.placement.Provider(uuid)
			require.True(t, ok)
			require.Equal(t, testNode, p.Name)

			require.NoError(t, f.again().Start(t.Context(), 7), "the next start finds the same")
		})
	}
}

func TestStartKeepsTheNodesName(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "zed", nil)
	f.nova.SetNode(record(nodeUUID, testHost, "old.example.org", nil))
	require.NoError(t, f.Start(t.Context(), 7))
	require.Equal(t, "old.example.org", f.Ownership()["node"], "the provider's name must not change")
	p, _ := f.placement.Provider(nodeUUID)
	require.Equal(t, "old.example.org", p.Name)
}
