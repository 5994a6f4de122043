// Package signature verifies the signatures of images as Nova does (cursive/signature_utils.py,
// cursive/certificate_utils.py): what an image's properties claim, the proof by the key of a
// certificate, and the chain from that certificate to trusted ones.
//
// It works on hashes of an image, never on its bytes: whoever reads these computes the hash that
// Claim.Digest names. It fetches nothing. All errors are *Error and say what is wrong in words that
// are meant for the image's owner.
package signature
