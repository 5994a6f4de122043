//go:build functional

package placement

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
)

// TestProviderLife creates, changes and deletes a provider, with the conflicts
// that two agents of one node would cause.
func TestProviderLife(t *testing.T) {
	ctx := t.Context()
	c := New(ostest.Need(t).Service("placement", "placement", ""))
	started := time.Now()
	step := func(name string) {
		t.Logf("%-22s %v", name, time.Since(started).Round(time.Millisecond))
		started = time.Now()
	}
	id, name := uuid.NewString(), "functional-"+uuid.NewString()
	_, err := c.Provider(ctx, id)
	require.ErrorIs(t, err, ErrNotFound)
	step("authenticate, show")

	p, created, err := c.EnsureProvider(ctx, id, name)
	require.NoError(t, err)
	require.True(t, created)
	t.Cleanup(func() { _ = c.DeleteProvider(context.WithoutCancel(ctx), id) })
	step("create")
	again, created, err := c.EnsureProvider(ctx, id, name)
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, p.Generation, again.Generation)
	step("ensure again")
	_, _, err = c.EnsureProvider(ctx, uuid.NewString(), name)
	require.ErrorIs(t, err, ErrNameTaken)
	step("name taken")

	inventories := Inventories{
		"VCPU":      {Total: 2, MinUnit: 1, MaxUnit: 2, StepSize: 1, AllocationRatio: 16},
		"MEMORY_MB": {Total: 4096, Reserved: 512, MinUnit: 1, MaxUnit: 4096, StepSize: 1, AllocationRatio: 1.5},
	}
	generation, err := c.SetInventories(ctx, id, p.Generation, inventories)
	require.NoError(t, err)
	step("set inventories")
	_, err = c.SetInventories(ctx, id, p.Generation, inventories)
	require.ErrorIs(t, err, ErrConflict)
	step("outdated generation")
	got, read, err := c.Inventories(ctx, id)
	require.NoError(t, err)
	require.Equal(t, inventories, got)
	require.Equal(t, generation, read)
	step("list inventories")

	traits, err := c.EnsureTraits(ctx, []string{"COMPUTE_NODE", "CUSTOM_COMPUTE_AGENT_TEST", "HW_OF_A_LATER_RELEASE"})
	require.NoError(t, err)
	require.Equal(t, []string{"COMPUTE_NODE", "CUSTOM_COMPUTE_AGENT_TEST"}, traits)
	generation, err = c.SetTraits(ctx, id, generation, traits)
	require.NoError(t, err)
	gotTraits, _, err := c.Traits(ctx, id)
	require.NoError(t, err)
	require.ElementsMatch(t, traits, gotTraits)
	step("traits")

	consumer, other := uuid.NewString(), uuid.NewString()
	held := Allocations{
		ByProvider: map[string]ProviderAllocation{id: {Resources: Resources{"VCPU": 1, "MEMORY_MB": 128}}},
		ProjectID:  uuid.NewString(), UserID: uuid.NewString(),
	}
	require.NoError(t, c.SetAllocation(ctx, consumer, held))
	t.Cleanup(func() { _, _ = c.DeleteAllocation(context.WithoutCancel(ctx), consumer) })
	t.Cleanup(func() { _, _ = c.DeleteAllocation(context.WithoutCancel(ctx), other) })
	step("allocate")
	// The allocation has moved the generation, as the scheduler's do.
	_, err = c.SetInventories(ctx, id, generation, Inventories{})
	require.ErrorIs(t, err, ErrConflict)
	byConsumer, generation, err := c.ProviderAllocations(ctx, id)
	require.NoError(t, err)
	require.Equal(t, map[string]Resources{consumer: {"VCPU": 1, "MEMORY_MB": 128}}, byConsumer)
	_, err = c.SetInventories(ctx, id, generation, Inventories{"VCPU": inventories["VCPU"]})
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorIs(t, c.DeleteProvider(ctx, id), ErrInUse)
	step("in use")

	require.NoError(t, c.MoveAllocation(ctx, consumer, other))
	require.NoError(t, c.MoveAllocation(ctx, consumer, other), "a move that is done")
	step("move")
	a, err := c.Allocations(ctx, other)
	require.NoError(t, err)
	require.Equal(t, Resources{"VCPU": 1, "MEMORY_MB": 128}, a.ByProvider[id].Resources)
	require.NoError(t, c.EmptyAllocation(ctx, other))
	step("empty")
	existed, err := c.DeleteAllocation(ctx, other)
	require.NoError(t, err)
	require.False(t, existed)
	require.NoError(t, c.DeleteProvider(ctx, id))
	require.NoError(t, c.DeleteProvider(ctx, id), "again")
	step("delete")
	require.NoError(t, c.do(ctx, "1.6", http.MethodDelete, "/traits/CUSTOM_COMPUTE_AGENT_TEST", nil, nil, nil))
}
