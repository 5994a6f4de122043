//go:build functional

package functional

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

func TestColdMigrate(t *testing.T) {
	p := twoHosts(t)
	server := p.boot(cloud.NewServer{})
	answers(t, server)
	p.fill(server.ID)
	time.Sleep(3 * time.Second) // so that the first pass has something that the second need not send
	p.sh(server.ID, "rm /data/gone; echo late > /data/late")
	before := p.sum(server.ID)

	moved := p.act(server.ID, "migrate", nil, "VERIFY_RESIZE")
	require.Equal(t, p.there.Host, moved.Host)
	require.Equal(t, before, p.sum(server.ID))
	require.Equal(t, server.IP(), moved.IP())
	answers(t, moved)
	m := p.migrations(server.ID)[0]
	require.Equal(t, migration{m.UUID, "finished", "migration", p.here.Host, p.there.Host}, m)
	require.Equal(t, []string{p.there.Host}, p.held(server.ID))
	require.Equal(t, []string{p.here.Host}, p.held(m.UUID))
	require.NotEmpty(t, leftovers(t, p.here, server.ID), "what is needed for a revert")

	p.act(server.ID, "confirmResize", nil, "ACTIVE")
	answers(t, moved)
	require.Equal(t, "confirmed", p.migrations(server.ID)[0].Status)
	require.Empty(t, p.held(m.UUID))
	require.Empty(t, leftovers(t, p.here, server.ID))
	require.Equal(t, []string{
		"compute_finish_resize=Success@" + p.there.Host, "compute_prep_resize=Success@" + p.there.Host, "compute_resize_instance=Success@" + p.here.Host,
	}, p.events(server.ID, "migrate"))
	for _, step := range []struct{ action, status string }{{"os-stop", "SHUTOFF"}, {"os-start", "ACTIVE"}} {
		p.act(server.ID, step.action, nil, step.status)
	}
	require.Equal(t, before, p.sum(server.ID))
	answers(t, moved)
	remove(t, server.ID)
	require.Empty(t, leftovers(t, p.there, server.ID))
	require.Empty(t, p.held(server.ID))
}
