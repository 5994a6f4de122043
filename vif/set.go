package vif

import (
	"context"
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/internal/keylock"
)

// Set is the Plugger that the agent uses: it hands every VIF to the plugger of its
// kind and runs one operation at a time per port. Operations of different ports
// run side by side.
type Set struct {
	pluggers map[Kind]Plugger
	shaper   Shaper        // nil: limits are not applied
	finders  []Finder      // see FindWith
	locks    keylock.Locks // by what the names of a port's devices have in common
}

// NewSet returns a Set over pluggers; a kind without one is unsupported on this host.
func NewSet(pluggers map[Kind]Plugger) *Set {
	return &Set{pluggers: pluggers}
}

// ShapeWith makes Plug and Unplug set and remove limits by shaper.
func (s *Set) ShapeWith(shaper Shaper) *Set {
	s.shaper = shaper
	return s
}

// Plug implements Plugger. The error wraps ErrNotBound or ErrUnsupported where
// v.Kind does, and ErrUnsupported if this host has no plugger for the kind.
func (s *Set) Plug(ctx context.Context, v VIF) (Link, error) {
	kind, err := v.Kind()
	if err != nil {
		return Link{}, fmt.Errorf("plug port %s: %w", v.PortID, err)
	}
	p, ok := s.pluggers[kind]
	if !ok {
		return Link{}, fmt.Errorf("plug port %s: %w: no plugger for %s on this host", v.PortID, ErrUnsupported, kind)
	}
	if err := v.validate(); err != nil {
		return Link{}, fmt.Errorf("plug port %s: %w", v.PortID, err)
	}
	unlock, err := s.locks.Lock(ctx, v.PortID[:min(len(v.PortID), maxDeviceName-devicePrefix)])
	if err != nil {
		return Link{}, fmt.Errorf("plug port %s: %w", v.PortID, err)
	}
	defer unlock()
	l, err := p.Plug(ctx, v)
	if err == nil && s.shaper != nil {
		err = s.shaper.Shape(ctx, v)
	}
	if err != nil {
		return Link{}, fmt.Errorf("plug port %s: %w", v.PortID, err)
	}
	return l, nil
}

// Unplug implements Plugger. A VIF that can no longer be told a kind (Neutron
// unbound it, or bound it to something else) still loses its pair, if this host
// has one of its name.
func (s *Set) Unplug(ctx context.Context, v VIF) error {
	kind, err := v.Kind()
	if err != nil {
		kind = KindTap
	}
	p, ok := s.pluggers[kind]
	if !ok {
		return nil // nothing here can have been plugged
	}
	unlock, err := s.locks.Lock(ctx, v.PortID[:min(len(v.PortID), maxDeviceName-devicePrefix)])
	if err != nil {
		return fmt.Errorf("unplug port %s: %w", v.PortID, err)
	}
	defer unlock()
	err = p.Unplug(ctx, v)
	if s.shaper != nil {
		err = errors.Join(err, s.shaper.Unshape(ctx, v))
	}
	if err != nil {
		return fmt.Errorf("unplug port %s: %w", v.PortID, err)
	}
	return nil
}

// validate refuses what would make wrong device names.
func (v VIF) validate() error {
	switch {
	case len(v.PortID) < maxDeviceName:
		return fmt.Errorf("port id %q is too short", v.PortID)
	case v.MAC == "":
		return errors.New("no MAC address")
	case v.MTU < 0:
		return fmt.Errorf("MTU %d is negative", v.MTU)
	}
	return nil
}
