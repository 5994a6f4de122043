//go:build functional

package functional

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

func TestColdMigrate(t *testing.T) {
	p := twoHosts(t)
	blank := func(format string) map[string]any {
		return map[string]any{"boot_index": -1, "source_type": "blank", "destination_type": "local", "volume_size": 1, "guest_format": format, "delete_on_termination": true}
	}
	server := p.boot(cloud.NewServer{Flavor: p.roomier, BlockDevices: []map[string]any{
		{"boot_index": 0, "uuid": shared.Busybox, "source_type": "image", "destination_type": "local", "delete_on_termination": true}, blank("ext4"), blank("xfs"),
	}})
	answers(t, server)
	p.fill(server.ID)
	p.sh(server.ID, `for d in /mnt /mnt/ephemeral1; do echo early on $d > $d/early; chown 1000:1001 $d/early; ln $d/early $d/hard; echo gone > $d/gone; done; sync`)
	time.Sleep(3 * time.Second) // so that the first pass has something that the second need not send
	p.sh(server.ID, "rm /data/gone /mnt/gone /mnt/ephemeral1/gone; echo late > /data/late; echo late > /mnt/late; chmod 700 /mnt/ephemeral1")
	all := func() string {
		return p.sum(server.ID) + p.sh(server.ID, `for d in /mnt /mnt/ephemeral1; do df -P $d | awk '{print $2, $6}'; find $d -xdev | sort | xargs stat -c '%n %a %u:%g %h %F'; cat $d/early; done`)
	}
	before := all()
	t.Log(before)

	moved := p.act(server.ID, "migrate", nil, "VERIFY_RESIZE")
	require.Equal(t, p.there.Host, moved.Host)
	require.Equal(t, before, all())
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
	require.Equal(t, before, all())
	answers(t, moved)
	remove(t, server.ID)
	require.Empty(t, leftovers(t, p.there, server.ID))
	require.Empty(t, p.held(server.ID))
}

// TestMigrateBetweenBackEnds: what the second host cannot do is refused and harms nobody; the whole tree of the root disk travels to a back end
// of another kind, and back; and nobody has to confirm.
func TestMigrateBetweenBackEnds(t *testing.T) {
	p := twoHosts(t, "[lxc]", "storage_backend = dir")
	server := p.boot(cloud.NewServer{})
	answers(t, server)
	p.fill(server.ID)
	before, first := p.sum(server.ID), booted(t, server.ID)

	ctx := within(t, time.Minute)
	require.NoError(t, p.here.Admin.Action(ctx, server.ID, "os-migrateLive", map[string]any{"host": p.there.Host, "block_migration": "auto"}, nil))
	refused := []string{"compute_check_can_live_migrate_destination=Error@" + p.there.Host}
	eventually(t, time.Minute, "the refusal", func(context.Context) (bool, error) {
		return slices.Equal(p.events(server.ID, "live-migration"), refused), nil
	})
	now := statusIn(t, 30*time.Second, server.ID, "ACTIVE")
	eventually(t, 30*time.Second, "the conductor to end the migration, too", func(context.Context) (bool, error) {
		return p.migrations(server.ID)[0].Status == "error", nil
	})
	require.Equal(t, p.here.Host, now.Host)
	require.Equal(t, first, booted(t, server.ID), "the guest was not touched")
	require.Equal(t, []string{p.here.Host}, p.held(server.ID))

	moved := p.act(server.ID, "migrate", nil, "VERIFY_RESIZE")
	require.Equal(t, p.there.Host, moved.Host)
	require.Equal(t, before, p.sum(server.ID))
	answers(t, moved)
	withOptions(t, p.there, "[DEFAULT]\nperiodic_fuzzy_delay = 0\nresize_confirm_window = 1\n")
	statusIn(t, time.Minute, server.ID, "ACTIVE")
	eventually(t, 30*time.Second, "the source to clear away", func(context.Context) (bool, error) {
		return p.migrations(server.ID)[0].Status == "confirmed" && len(leftovers(t, p.here, server.ID)) == 0, nil
	})
	require.Equal(t, []string{p.there.Host}, p.held(server.ID))

	back := p.act(server.ID, "migrate", nil, "VERIFY_RESIZE")
	require.Equal(t, p.here.Host, back.Host)
	require.Equal(t, before, p.sum(server.ID))
	answers(t, back)
	remove(t, server.ID)
	require.Empty(t, p.held(server.ID))
}
