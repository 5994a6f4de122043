package storage

import (
	"context"
	"errors"
	"fmt"
)

// Layered is a back end whose root disks hold what an instance has changed, apart from
// the image's tree. A move between hosts that both have the image needs no more.
type Layered interface {
	// KeepsLayers tells whether a root disk that is made as r would have a layer.
	KeepsLayers(r Root) bool
	// Layer makes the directory of an instance's changes reachable until done is called, mounted or not. While the
	// root disk is mounted it is only to be read. ErrUnsupported: this root disk has no layer; ErrNotFound: there is none.
	Layer(ctx context.Context, instanceID string) (dir string, done func() error, err error)
}

// Shrinker is a back end whose root disks can be made smaller again, as the revert of a resize needs.
type Shrinker interface {
	// Shrink makes a root disk smaller that is not mounted. ErrTooSmall: what is in it would not fit, and it stays as it is.
	Shrink(ctx context.Context, instanceID string, sizeGB int) error
}

// Contentless is a back end that pretends: its root disks have no content, so there is nothing of them to bring to another host.
type Contentless interface {
	Contentless()
}

// KeepsLayers implements Layered by the back end of a new root disk.
func (c *choice) KeepsLayers(r Root) bool {
	b, err := c.of(r)
	if err != nil {
		return false
	}
	l, ok := b.(Layered)
	return ok && l.KeepsLayers(r)
}

// Layer implements Layered by whichever back end has the root disk.
func (c *choice) Layer(ctx context.Context, instanceID string) (dir string, done func() error, err error) {
	err = c.any(func(b Backend) error {
		l, ok := b.(Layered)
		if !ok {
			return ErrNotFound
		}
		dir, done, err = l.Layer(ctx, instanceID)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return "", nil, fmt.Errorf("%w: the root disk of %s has no layer", ErrUnsupported, instanceID)
	}
	return dir, done, err
}

// Shrink implements Shrinker by whichever back end has the root disk.
func (c *choice) Shrink(ctx context.Context, instanceID string, sizeGB int) error {
	err := c.any(func(b Backend) error {
		s, ok := b.(Shrinker)
		if !ok {
			return ErrNotFound
		}
		return s.Shrink(ctx, instanceID, sizeGB)
	})
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: the back end of %s does not shrink root disks", ErrUnsupported, instanceID)
	}
	return err
}
