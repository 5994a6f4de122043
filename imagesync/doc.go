// Package imagesync keeps the local image store: it fetches images from Glance,
// verifies them, and keeps each one unpacked, once, under the SHA-256 of its bytes.
//
// Layout of the store's directory (mode 0700, one process at a time):
//
//	lock                         held while the store is open
//	images/<sha256>/rootfs       the unpacked tree, un-shifted ids, read-only use
//	images/<sha256>/metadata.yaml, templates/
//	images/<sha256>/image.json   sizes and hashes of the content
//	aliases/<glance id>.json     id -> sha256 and the metadata seen under that id; its mtime is the last use
//	refs/<glance id>/<instance>  the image is in use by that instance
//	retired/<boot id>/           trees that guests may run on and that were not known to be whole on the disk; kept until a reboot, and after a kill perhaps the tree that was to replace one
//	staging/                     imports in flight and trees to be removed; wiped by Open
//
// An image appears by one rename of a complete and verified directory, so a crash
// at any point leaves either the whole image or nothing. Data reaches the disk in
// the background afterwards; until it has, the image is bound to the running
// kernel (its boot id) and Open after a power cut drops it. One whose way to the disk
// failed, or whose process ended before it knew, is fetched again for the next who
// asks. A record that takes the place of another is forced to disk first.
package imagesync
