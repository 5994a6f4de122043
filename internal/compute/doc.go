// Package compute is the compute manager: it takes the methods of Nova's compute
// RPC API and makes the instances of this host be what they ask for.
//
// One file holds one family of methods (build.go, terminate.go, power.go, …);
// methods.go is the table of all of them, refused ones included. What has a reason of its own
// and needs nothing of the manager is a package below this one. The manager
// translates: between Nova's objects and the plain structures of driver, vif,
// imagesync and storage, and between their errors and Nova's exception classes.
//
// What it relies on:
//   - operations on one instance are serialised by Manager.locks (by UUID); a
//     terminate cancels what runs detached on the same instance before it queues for the lock;
//   - a host change is recorded (see record) before it is made, and removeFromHost
//     takes back all of them, whatever part exists;
//   - an operation that outlives its message is in the journal from its acceptance to
//     its end: a delete cancels it there, and a restarted agent finishes it.
package compute
