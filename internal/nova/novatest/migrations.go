package novatest

import (
	"encoding/json"
	"maps"
)

// Migration returns the fields of a migration, by UUID; nil: there is none.
func (c *Conductor) Migration(uuid string) Fields {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.migrations {
		if text(m["uuid"]) == uuid {
			return maps.Clone(m)
		}
	}
	return nil
}

// saveMigration stores what changed of a migration that a test has added; of another one it only answers.
func saveMigration(c *Conductor, in *request) (json.RawMessage, error) {
	for _, m := range c.migrations {
		if string(m["uuid"]) == string(in.Object.Data["uuid"]) {
			maps.Copy(m, in.changed())
		}
	}
	return updates(in.changed()), nil
}

func migrationsByFilters(c *Conductor, in *request) (json.RawMessage, error) {
	var filters map[string]json.RawMessage
	if err := json.Unmarshal(in.Args[0], &filters); err != nil {
		return nil, err
	}
	var found []json.RawMessage
	for _, m := range c.migrations {
		fits := true
		for name, want := range filters {
			fits = fits && expected(want, m[name])
		}
		if fits {
			found = append(found, Object("Migration", m))
		}
	}
	return list("MigrationList", found), nil
}

func dropMigrationContext(c *Conductor, in *request) (json.RawMessage, error) {
	if row, ok := c.instances[text(in.Object.Data["uuid"])]; ok {
		row["migration_context"] = null
	}
	return updates(Fields{"migration_context": null}), nil
}

func noMigrationContext(*Conductor, *request) (json.RawMessage, error) {
	return nil, Failure("MigrationContextNotFound")
}
