package compute

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/exception"
)

func TestFixedIPs(t *testing.T) {
	t.Parallel()
	w := built(t)
	addresses := func() []string {
		var all []string
		for _, v := range w.instance("info_cache").NetworkInfo() {
			for _, s := range v.Network.Subnets {
				for _, ip := range s.IPs {
					all = append(all, ip.Address)
				}
			}
		}
		return all
	}
	before := addresses()
	require.Len(t, before, 1)
	_, err := w.operate("add_fixed_ip_to_instance", "", map[string]any{"network_id": networkID})
	require.NoError(t, err)
	require.True(t, w.trail.has("PUT /ports/port-1"))
	require.Len(t, w.nova.LogOf("Instance.save"), 1)
	require.Contains(t, w.sender.all(), "INFO compute.instance.create_ip.start")
	require.Contains(t, w.sender.all(), "INFO compute.instance.create_ip.end")

	_, err = w.operate("remove_fixed_ip_from_instance", "", map[string]any{"address": before[0]})
	require.NoError(t, err)
	require.NotContains(t, addresses(), before[0])
	require.Contains(t, w.sender.all(), "INFO compute.instance.delete_ip.end")
	require.Empty(t, w.nova.Faults())

	w.trail.fail("PUT", errBoom, errBoom, errBoom)
	_, err = w.operate("add_fixed_ip_to_instance", "", map[string]any{"network_id": networkID})
	require.True(t, exception.Is(err, "NetworkNotFoundForInstance"), "%v", err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
}
