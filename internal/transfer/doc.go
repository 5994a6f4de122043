// Package transfer brings the trees of an instance's disks from one host to another: over TLS, in
// several passes, while its guest runs and once more after it has stopped. A pass goes through
// the trees one after the other.
//
// The source serves and the destination pulls. Who may pull is told by a Ticket, which
// the two hosts exchange over the message bus: the server's address, the SHA-256 of its
// certificate, which is made anew with every start of the agent, and a token that is
// good for one migration. The destination proves itself by the token, the source by the
// certificate. So no certificate has to be brought to any host, and whoever could forge
// a ticket commands every compute service through the same bus anyway.
//
// Owners are on the wire as the guest sees them, from 0, so that both hosts may have other
// id ranges. Sparse files, hard links, extended attributes, access lists and file
// capabilities are kept, and the whiteouts and opaque directories of an overlay's layer.
//
// # Passes
//
// A pass sends what the destination does not have yet. An entry counts as had when the
// destination has acknowledged it and inode, size and ctime are those of then, and the
// ctime lies before the pass that sent it: the pass begins by writing the file system
// back, so that later writes through memory maps, too, are seen in the ctime. A
// connection that breaks costs the unacknowledged part; the next one is one pass more.
// The destination removes what a changed directory does not name any more.
//
// # Trust
//
// The tree is a guest's, which changes it while it is read: nothing is opened through
// links, and every name is opened relative to its open directory. The destination writes
// below one open directory and follows no link either.
package transfer
