package compute

import (
	"context"
	"encoding/json"
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

// journalBucket holds a journalEntry per instance UUID whose build was accepted and has
// not ended. The broker forgets a message on receipt; this is where a build lives then.
const journalBucket = "builds"

// journalEntry is a build as it came: arguments and request context, its token and
// the admin password included. The database is readable by root alone.
type journalEntry struct {
	Args     rpc.Args                   `json:"args"`
	Context  map[string]json.RawMessage `json:"context"`
	Accepted time.Time                  `json:"accepted"`
}

func (m *Manager) journalBuild(ctx context.Context, r *buildRequest) error {
	return state.Put(m.DB, journalBucket, r.Instance.UUID, journalEntry{
		Args: r.args, Context: reqctx.From(ctx).Map(), Accepted: time.Now().UTC(),
	})
}

func (m *Manager) forgetBuild(uuid string) error {
	return state.Delete(m.DB, journalBucket, uuid)
}

// resumeBuilds takes up the builds that an earlier process accepted and did not end.
// What it had done on the host and in Neutron is removed first, then the build runs
// from its beginning. Call it once, before messages are consumed.
func (m *Manager) resumeBuilds(ctx context.Context) error {
	entries, err := state.List[journalEntry](m.DB, journalBucket)
	if err != nil {
		return err
	}
	for uuid, entry := range entries {
		r, err := decodeBuildRequest(entry.Args)
		if err != nil {
			reqctx.Log(ctx).WithField("instance", uuid).WithError(err).Error("build in the journal is not readable")
			if err := m.forgetBuild(uuid); err != nil {
				return err
			}
			continue
		}
		bctx := reqctx.WithField(reqctx.With(ctx, reqctx.FromMap(entry.Context)), "instance", uuid)
		m.background(bctx, func(ctx context.Context) {
			reqctx.Log(ctx).WithField("accepted", entry.Accepted).Warning("resuming a build that the agent's last stop interrupted")
			if err := m.removeFromHost(ctx, uuid, nil); err != nil {
				reqctx.Log(ctx).WithError(err).Error("interrupted build not removed from the host")
			}
			m.releaseNetwork(ctx, r)
			m.build(ctx, r, true)
		})
	}
	return nil
}

// isJournaled tells whether a build of the instance is waiting or under way.
func (m *Manager) isJournaled(uuid string) (bool, error) {
	_, ok, err := state.Get[journalEntry](m.DB, journalBucket, uuid)
	return ok, err
}
