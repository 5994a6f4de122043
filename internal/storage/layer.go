package storage

import (
	"context"
	"errors"
	"fmt"
)

// Layered is a back end whose root disks hold what an instance has changed, apart from
// the image's tree. A move between hosts that both have the image needs no more.
type Layered interface {
	// Layer makes the directory of an instance's changes reachable until done is called, mounted or not. While the
	// root disk is mounted it is only to be read. ErrUnsupported: this root disk has no layer; ErrNotFound: there is none.
	Layer(ctx context.Context, instanceID string) (dir string, done func() error, err error)
}

// Shrinker is a back end whose root disks can be made smaller again, as the revert of a resize needs.
type Shrinker interface {
	// Shrink makes a root disk smaller that is not mounted. ErrTooSmall: what is in it would not fit, and it stays as it is.
	Shrink(ctx context.Context, instanceID string, sizeGB int) error
}

// Layer implements Layered by whichever back end has the root disk.
func (b *byNesting) Layer(ctx context.Context, instanceID string) (string, func() error, error) {
	l, ok := b.normal.(Layered)
	if !ok {
		return "", nil, fmt.Errorf("%w: %s has no layers", ErrUnsupported, b.normal.Name())
	}
	return l.Layer(ctx, instanceID)
}

// Shrink implements Shrinker by whichever back end has the root disk.
func (b *byNesting) Shrink(ctx context.Context, instanceID string, sizeGB int) error {
	for _, back := range []Backend{b.normal, b.nested} {
		s, ok := back.(Shrinker)
		if !ok {
			continue
		}
		if err := s.Shrink(ctx, instanceID, sizeGB); !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return fmt.Errorf("%w: the back end of %s does not shrink root disks", ErrUnsupported, instanceID)
}
