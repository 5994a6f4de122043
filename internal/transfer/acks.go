package transfer

import "sync"

// ackEvery is how many entries the destination applies before it acknowledges them.
const ackEvery = 64

// acknowledgements are the entries of a connection that wait to be acknowledged.
type acknowledgements struct {
	mu      sync.Mutex // guards the fields below
	last    uint64
	waiting []sent
	applied uint64
	moved   chan struct{} // closed and replaced with every acknowledgement
}

func newAcknowledgements() *acknowledgements {
	return &acknowledgements{moved: make(chan struct{})}
}

// expect gives an entry that is about to be sent its number.
func (a *acknowledgements) expect(s sent) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	s.seq = a.last
	a.waiting = append(a.waiting, s)
	return s.seq
}

// acknowledge takes every entry up to a number as applied.
func (a *acknowledgements) acknowledge(seq uint64) {
	a.mu.Lock()
	n := 0
	for n < len(a.waiting) && a.waiting[n].seq <= seq {
		n++
	}
	done := a.waiting[:n]
	a.waiting = a.waiting[n:]
	a.applied = max(a.applied, seq)
	close(a.moved)
	a.moved = make(chan struct{})
	a.mu.Unlock()
	for _, s := range done {
		s.had.acknowledge(s)
	}
}

// complete tells whether everything is applied, and if not what to wait for.
func (a *acknowledgements) complete() (bool, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applied >= a.last, a.moved
}

// so is how many entries were applied so far.
func (a *acknowledgements) so() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applied
}
