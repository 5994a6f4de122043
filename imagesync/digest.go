package imagesync

import (
	"crypto/md5"  //nolint:gosec // Glance's legacy checksum, see verify
	"crypto/sha1" //nolint:gosec // an os_hash_algo that an operator may have chosen
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// hashers are the values of Glance's os_hash_algo (its option hashing_algorithm,
// any name of Python's hashlib) that are known here.
var hashers = map[string]func() hash.Hash{
	"md5":      md5.New,
	"sha1":     sha1.New,
	"sha224":   sha256.New224,
	"sha256":   sha256.New,
	"sha384":   sha512.New384,
	"sha512":   sha512.New,
	"sha3_256": func() hash.Hash { return sha3.New256() },
	"sha3_384": func() hash.Hash { return sha3.New384() },
	"sha3_512": func() hash.Hash { return sha3.New512() },
}

// digest computes all that is wanted of one stream: always SHA-256, and what Glance recorded.
type digest struct {
	sums map[string]hash.Hash
	algo string // to be compared; empty: nothing was recorded
	want string
	// fingerprint of a split image has had the other half already; nil: the image is whole.
	fingerprint hash.Hash
}

// newDigest picks what to verify as glanceclient does (v2/images.py:data): the
// strong hash if Glance has one and it is known, else the MD5 checksum.
func newDigest(hashAlgo, hashValue, checksum string) (*digest, error) {
	d := &digest{sums: map[string]hash.Hash{"sha256": sha256.New()}}
	switch _, known := hashers[hashAlgo]; {
	case hashValue != "" && known:
		d.algo, d.want = hashAlgo, strings.ToLower(hashValue)
	case checksum != "":
		d.algo, d.want = "md5", strings.ToLower(checksum)
	case hashValue != "":
		return nil, &refused{found: fmt.Sprintf("a hash of the unknown kind %q and no checksum", hashAlgo), want: "os_hash_algo sha512 or another of the SHA-2 and SHA-3 families"}
	}
	d.add(d.algo)
	return d, nil
}

// add computes a hash besides; the name is known, Request.check has seen to that. Empty: none.
func (d *digest) add(algo string) {
	if algo != "" && d.sums[algo] == nil {
		d.sums[algo] = hashers[algo]()
	}
}

// also computes SHA-512, Glance's default, of what does not come from Glance: the same
// bytes there need no download.
func (d *digest) also() {
	d.add("sha512")
}

// Write implements io.Writer; it never fails.
func (d *digest) Write(p []byte) (int, error) {
	for _, h := range d.sums {
		_, _ = h.Write(p)
	}
	if d.fingerprint != nil {
		_, _ = d.fingerprint.Write(p)
	}
	return len(p), nil
}

// verify compares with what Glance has recorded.
func (d *digest) verify() error {
	if d.algo == "" {
		return nil
	}
	if got := hex.EncodeToString(d.sums[d.algo].Sum(nil)); got != d.want {
		return fmt.Errorf("%w: %s is %s, Glance has recorded %s", ErrHashMismatch, d.algo, got, d.want)
	}
	return nil
}

// identity is the SHA-256 of the whole image, as LXD and Incus define it.
func (d *digest) identity() string {
	if d.fingerprint != nil {
		return hex.EncodeToString(d.fingerprint.Sum(nil))
	}
	return hex.EncodeToString(d.sums["sha256"].Sum(nil))
}

func (d *digest) hex() map[string]string {
	out := map[string]string{}
	for algo, h := range d.sums {
		out[algo] = hex.EncodeToString(h.Sum(nil))
	}
	return out
}
