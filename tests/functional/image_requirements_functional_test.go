//go:build functional

package functional

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestImageThatRequiresNesting: the image asks, the flavor allows; where it does not, the fault says so.
func TestImageThatRequiresNesting(t *testing.T) {
	image := upload(t, shared.Plane.BusyboxPath(), "raw", map[string]any{"requirements.nesting": "true"})
	fault := errored(t, create(t, cloud.NewServer{Image: image})).Fault
	require.Contains(t, fault.Message+fault.Details, "it requires nesting (requirements.nesting)")

	nested := flavor(t, cloud.NewFlavor{Disk: 1}, map[string]string{"lxd:nested_allowed": "true"})
	server := boot(t, cloud.NewServer{Image: image, Flavor: nested})
	require.Equal(t, "proc\nsys", inside(t, server.ID, "ls", "/dev/.lxc"), "what containers in it need to mount theirs")
}
