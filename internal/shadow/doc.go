// Package shadow changes a user's password in a guest, as passwd(1) in the guest would: in the
// guest's own files, hashed the way that the guest's login expects.
//
// Everything below the guest's root is hostile: links may lead anywhere, a file may be replaced at
// any moment, a lock may never be released. So every name is resolved by the kernel inside the root
// (openat2(2), RESOLVE_IN_ROOT), only regular files are opened, sizes and waits are bounded, and the
// new file replaces the old one in one step. Passwords and hashes are in no error and no log.
package shadow
