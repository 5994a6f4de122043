package conductor

import (
	"context"
	"fmt"
	"maps"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// MigrationsInProgressAndError lists the moves from and to a node that are under way
// or failed.
func (c *Client) MigrationsInProgressAndError(ctx context.Context, host, node string) ([]*object.Migration, error) {
	return list[object.Migration](ctx, c, "MigrationList", "get_in_progress_and_error", []any{host, node}, nil)
}

// MigrationsByFilters lists moves by column values, e.g. source_compute, status, migration_type.
func (c *Client) MigrationsByFilters(ctx context.Context, filters map[string]any) ([]*object.Migration, error) {
	return list[object.Migration](ctx, c, "MigrationList", "get_by_filters", []any{filters}, nil)
}

// UnconfirmedResizes lists resizes to a host that have waited longer than window seconds.
func (c *Client) UnconfirmedResizes(ctx context.Context, window int, host string) ([]*object.Migration, error) {
	return list[object.Migration](ctx, c, "MigrationList", "get_unconfirmed_by_dest_compute", []any{window, host}, map[string]any{"use_slave": true})
}

// SaveMigration stores changed fields of a move; dest_compute_id follows the rule of
// compute_id in SaveInstance.
func (c *Client) SaveMigration(ctx context.Context, m *object.Migration, changes map[string]any) error {
	switch _, hasID := changes["dest_compute_id"]; {
	case !c.release.SendsComputeID:
		changes = without(changes, "dest_compute_id")
	case !hasID && has(changes, "dest_node"):
		if changes["dest_node"] != nil {
			return fmt.Errorf("save migration %s: dest_node changes without dest_compute_id", m.UUID)
		}
		changes = maps.Clone(changes)
		changes["dest_compute_id"] = nil
	}
	return c.save(ctx, m, "Migration", []string{"id", "uuid", "instance_uuid"}, changes, nil)
}
