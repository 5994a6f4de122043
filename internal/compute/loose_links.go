package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/vif"
)

// Bounds of the removal of an instance's loose links: of all of it, and of the wait between two looks whether its guest has let go.
const (
	looseLinksTimeout = 30 * time.Second
	looseLinksPause   = time.Second
)

// looseLinks are the links on this host that bear the mark of an instance and that no record has, by the instance's UUID: those of a
// record that was lost, or is damaged, and of other agents on this machine. Only Leftovers looks for them, when an operator asks: they
// come from a lost or restored database and not from a crash, for a record is written before its ports are plugged; and
// each costs a question to nova.
func (m *Manager) looseLinks(ctx context.Context) (map[string][]vif.Marked, error) {
	finder, ok := m.Plugger.(vif.Finder)
	if !ok { // a host of the fake driver has no links
		return nil, nil
	}
	marked, err := finder.Marked(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for links of instances: %w", err)
	}
	// After the links: what is plugged meanwhile has its record before.
	records, _, err := state.ListReadable[record](m.DB, recordBucket)
	if err != nil {
		return nil, err
	}
	loose := map[string][]vif.Marked{}
	for _, link := range marked {
		has := func(v vif.VIF) bool { return slices.Contains(v.Devices(), link.Name) }
		if !slices.ContainsFunc(records[link.Instance].VIFs, has) {
			loose[link.Instance] = append(loose[link.Instance], link)
		}
	}
	return loose, nil
}

// freeLinks tells whether an instance's loose links may be removed with it, and in words why not. gone: nova has deleted it. One that is
// on no host may be on its way to another agent of this machine, under whose hands its links have the same names.
func (r *remains) freeLinks(gone bool) (free bool, kept string) {
	switch {
	case len(r.links) == 0:
		return false, ""
	case !gone:
		return false, "; links that no record has stay"
	case !r.guest() && slices.ContainsFunc(r.links, inUse):
		return false, "; somebody else uses its links"
	}
	return true, ""
}

// guest tells that there is a container of this agent's, which may hold the links until it is removed.
func (r *remains) guest() bool {
	return slices.ContainsFunc(r.has, func(what string) bool { return strings.HasPrefix(what, "container ") })
}

func inUse(link vif.Marked) bool { return link.InUse }

// removeLooseLinks removes an instance's loose links, all or none: one that is in use has the others wired to it. The kernel takes a
// moment to take them from a guest that has just ended.
func (m *Manager) removeLooseLinks(ctx context.Context, uuid string) error {
	ctx, cancel := context.WithTimeout(ctx, looseLinksTimeout)
	defer cancel()
	for {
		all, err := m.looseLinks(ctx)
		if err != nil {
			return err
		}
		links := all[uuid]
		at := slices.IndexFunc(links, inUse)
		if at < 0 {
			return m.removeLinks(ctx, links)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove links: %s: %w", links[at], vif.ErrInUse)
		case <-time.After(looseLinksPause):
		}
	}
}

func (m *Manager) removeLinks(ctx context.Context, links []vif.Marked) error {
	finder, ok := m.Plugger.(vif.Finder)
	if !ok {
		return nil
	}
	var errs []error
	for _, link := range links {
		errs = append(errs, finder.RemoveMarked(ctx, link))
	}
	return errors.Join(errs...)
}
