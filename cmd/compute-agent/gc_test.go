package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/control"
)

func TestLeftoversTable(t *testing.T) {
	t.Parallel()
	found := []control.Leftover{
		{Instance: "u1", Has: []string{"record", "root disk"}, Why: "deleted", Removable: true, Removed: true},
		{Instance: "u2", Has: []string{"root disk"}, Why: "deleted", Removable: true},
		{Instance: "u3", Has: []string{"id range"}, Why: "nova has it on host other"},
		{Instance: "u4", Has: []string{"record"}, Why: "deleted", Removable: true, Error: "destroy guest: \x1b[1mboom"},
	}
	var out bytes.Buffer
	f := outputFlags{format: "table"}
	require.NoError(t, f.write(&out, found, func(t *table) { t.leftovers(found) }))
	require.Equal(t, `INSTANCE   RESULT             WHY                         WHAT THERE IS
u1         removed            deleted                     record, root disk
u2         would be removed   deleted                     root disk
u3         kept               nova has it on host other   id range
u4         failed             destroy guest: ?[1mboom     record
`, out.String())
	require.ErrorContains(t, failedLeftovers(found), "1 leftover not dealt with")
	require.NoError(t, failedLeftovers(found[:3]))
	out.Reset()
	require.NoError(t, f.write(&out, nil, func(t *table) { t.leftovers(nil) }))
	require.Equal(t, "nothing lies on this node without a server\n", out.String())
}
