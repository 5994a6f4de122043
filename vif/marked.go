package vif

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// ErrInUse tells that a guest, or somebody else, uses what was to be removed.
var ErrInUse = errors.New("in use")

// What may bear the mark of an instance.
const (
	MarkedDevice  = "device"
	MarkedOVSPort = "Open vSwitch port"
)

// Marked is something on the host that bears the mark of an instance. Who made it the mark does not tell: another agent of the same
// machine leaves the same, and os-vif the same ports of Open vSwitch (vif_plug_ovs/ovs.py:_create_vif_port).
type Marked struct {
	Instance string // UUID
	What     string // MarkedDevice or MarkedOVSPort
	Name     string // of the device
	InUse    bool   // a guest has the other end, or the port's device is not the instance's
}

// String tells of it in words.
func (m Marked) String() string {
	if m.InUse {
		return m.What + " " + m.Name + " (in use)"
	}
	return m.What + " " + m.Name
}

// IsMark tells that a text can be the mark of an instance: a UUID in the one notation that Nova uses. Administrators write into
// the aliases of devices too.
func IsMark(text string) bool {
	const length = 36
	return len(text) == length && uuid.Validate(text) == nil
}

// Finder finds on the host what bears the mark of an instance, for those who have no record of its ports.
//
// Marked lists it for all instances; a host that lacks the thing has none of it. RemoveMarked removes one of
// it, if it still bears the mark that Marked saw; what is gone, or another instance's by now, is fine. ErrInUse: somebody uses
// it. Both respect ctx's deadline.
type Finder interface {
	Marked(ctx context.Context) ([]Marked, error)
	RemoveMarked(ctx context.Context, m Marked) error
}

var _ Finder = (*Set)(nil)

// FindWith makes Marked and RemoveMarked ask finders, in this order. Each leaves alone what is not of its kind.
func (s *Set) FindWith(finders ...Finder) *Set {
	s.finders = finders
	return s
}

// Marked implements Finder.
func (s *Set) Marked(ctx context.Context) ([]Marked, error) {
	var all []Marked
	for _, f := range s.finders {
		found, err := f.Marked(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// RemoveMarked implements Finder. The port may be plugged for another instance at the same time: it waits for its turn, if
// its devices have the names that derive from the port.
func (s *Set) RemoveMarked(ctx context.Context, m Marked) error {
	unlock, err := s.locks.Lock(ctx, m.Name[min(len(m.Name), devicePrefix):])
	if err != nil {
		return fmt.Errorf("remove %s: %w", m, err)
	}
	defer unlock()
	var errs []error
	for _, f := range s.finders {
		errs = append(errs, f.RemoveMarked(ctx, m))
	}
	return errors.Join(errs...)
}

// Devices are the names that plugging a port may use on the host.
func (v VIF) Devices() []string {
	bridgeEnd, ovsEnd := HybridPair(v.PortID)
	return []string{v.HostDevice(), PeerName(v.PortID), bridgeEnd, ovsEnd, HybridBridge(v.PortID), ShapeName(v.PortID)}
}
