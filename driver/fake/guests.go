package fake

import (
	"fmt"
	"slices"

	"github.com/compute-agent/compute-agent/internal/state"
)

// guestBucket has the instances by UUID, all but what their consoles showed.
const guestBucket = "fake-guests"

// consoleSize bounds what is kept of a console; the API shows a little less than that of one (nova/compute/manager.py:MAX_CONSOLE_BYTES).
const consoleSize = 128 << 10

// Open returns a driver whose instances are in a database, with those that an earlier process left there, running or not. The
// database stays the caller's.
func Open(db *state.DB) (*Driver, error) {
	guests, err := state.List[*Instance](db, guestBucket)
	if err != nil {
		return nil, fmt.Errorf("open fake driver: %w", err)
	}
	d := New()
	d.db, d.instances = db, guests
	for _, i := range guests {
		d.nextPID = max(d.nextPID, i.InitPID+1)
	}
	return d, nil
}

// save records an instance. d.mu is held.
func (d *Driver) save(i *Instance) error {
	if d.db == nil {
		return nil
	}
	return state.Put(d.db, guestBucket, i.Spec.UUID, i)
}

// forget removes an instance's record. d.mu is held.
func (d *Driver) forget(uuid string) error {
	if d.db == nil {
		return nil
	}
	return state.Delete(d.db, guestBucket, uuid)
}

// greet says on the console of an agent's guest what it is. d.mu is held.
func (d *Driver) greet(i *Instance) {
	if d.db != nil {
		d.print(i, []byte("This is the fake driver of compute-agent: "+i.Spec.Name+" is started, and nothing runs.\r\n"))
	}
}

// print adds output to a guest's console. d.mu is held.
func (d *Driver) print(i *Instance, p []byte) {
	i.Console = append(i.Console, p...)
	if over := len(i.Console) - consoleSize; over > 0 {
		i.Console = slices.Delete(i.Console, 0, over)
		i.dropped += over
	}
	d.wakeConsoles()
}
