//go:build functional

package functional

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// TestKilledWhileMigrating kills one agent or the other at several moments of a migration. The server ends on one of
// the hosts with its data, running, or in ERROR on the destination; and its deletion leaves nothing on either.
func TestKilledWhileMigrating(t *testing.T) {
	for _, killed := range []string{"source", "destination"} {
		for _, ms := range []int{1200, 2500, 4500} {
			after := time.Duration(ms) * time.Millisecond
			t.Run(fmt.Sprintf("%s/%s", killed, after), func(t *testing.T) {
				p := twoHosts(t, "[lxc]", "migration_port = 16526")
				server := p.boot(cloud.NewServer{Name: "moves-crash"})
				p.fill(server.ID)
				before := p.sum(server.ID)
				require.NoError(t, p.here.Admin.Action(within(t, time.Minute), server.ID, "migrate", nil, nil))
				time.Sleep(after)
				victim := p.here
				if killed == "destination" {
					victim = p.there
				}
				kill(t, victim)
				restart(t, victim)
				now := statusIn(t, 4*time.Minute, server.ID, "ACTIVE", "VERIFY_RESIZE", "ERROR")
				t.Logf("%s on %s, migration %s", now.Status, now.Host, p.migrations(server.ID)[0].Status)
				require.NotEqual(t, "ERROR", now.Status, "%+v", now.Fault)
				require.Equal(t, before, p.sum(server.ID))
				m := p.migrations(server.ID)[0]
				if now.Status == "ACTIVE" {
					require.Equal(t, "error", m.Status)
					require.Equal(t, []string{now.Host}, p.held(server.ID))
					require.Empty(t, p.held(m.UUID))
				}
				remove(t, server.ID)
				eventually(t, 3*time.Minute, "nothing left on either host", func(context.Context) (bool, error) {
					return len(leftovers(t, p.here, server.ID))+len(leftovers(t, p.there, server.ID)) == 0, nil
				})
				require.Empty(t, p.held(server.ID))
				require.Empty(t, p.held(m.UUID))
			})
		}
	}
}

// restart starts an agent that was killed and waits until it serves.
func restart(t *testing.T, l *lab.Lab) {
	t.Helper()
	require.NoError(t, l.Agent.Start())
	require.NoError(t, l.Agent.WaitServing(within(t, time.Minute)))
}
