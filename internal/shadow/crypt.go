package shadow

import (
	"crypto/md5" //nolint:gosec // of guests that know nothing better
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"strings"
)

// method is a way to hash passwords (crypt(5)).
type method struct {
	prefix  string
	saltLen int
	hash    func(password, salt string) string
}

// The methods that are written. Every libc's crypt(3) knows sha512, which therefore serves guests that
// hash in another way themselves (yescrypt, bcrypt): what they accept does not depend on what they write.
var (
	methodSHA512 = method{"$6$", 16, func(p, s string) string { return shaCrypt(sha512.New, p, s, order512) }}
	methodSHA256 = method{"$5$", 16, func(p, s string) string { return shaCrypt(sha256.New, p, s, order256) }}
	methodMD5    = method{"$1$", 8, md5Crypt}
)

// methodOf picks the method by the guest's login.defs(5). Old guests that name a weaker one may
// have been built without a better one.
func methodOf(loginDefs string) method {
	for line := range strings.Lines(loginDefs) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "ENCRYPT_METHOD" {
			continue
		}
		switch strings.ToUpper(f[1]) {
		case "SHA256":
			return methodSHA256
		case "MD5":
			return methodMD5
		}
	}
	return methodSHA512
}

// alphabet is crypt's own base 64.
const alphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// crypt hashes a password with a fresh salt.
func (m method) crypt(password string) string {
	raw := make([]byte, m.saltLen)
	_, _ = rand.Read(raw) // never fails
	salt := make([]byte, m.saltLen)
	for i, b := range raw {
		salt[i] = alphabet[b&63]
	}
	return m.prefix + string(salt) + "$" + m.hash(password, string(salt))
}

// rounds is what sha-crypt uses if the salt does not say.
const rounds = 5000

// order512 and order256 are the order in which the bytes of the digest are written, three
// at a time; -1 stands for a zero (Drepper, "Unix crypt using SHA-256 and SHA-512").
var (
	order512 = []int{
		0, 21, 42, 22, 43, 1, 44, 2, 23, 3, 24, 45, 25, 46, 4, 47, 5, 26, 6, 27, 48, 28, 49, 7, 50, 8, 29, 9, 30, 51, 31, 52, 10,
		53, 11, 32, 12, 33, 54, 34, 55, 13, 56, 14, 35, 15, 36, 57, 37, 58, 16, 59, 17, 38, 18, 39, 60, 40, 61, 19, 62, 20, 41, -1, -1, 63,
	}
	order256 = []int{
		0, 10, 20, 21, 1, 11, 12, 22, 2, 3, 13, 23, 24, 4, 14, 15, 25, 5, 6, 16, 26, 27, 7, 17, 18, 28, 8, 9, 19, 29, -1, 31, 30,
	}
)

// shaCrypt is sha-crypt with the default number of rounds.
func shaCrypt(newHash func() hash.Hash, password, salt string, order []int) string {
	key, s := []byte(password), []byte(salt)
	b := newHash()
	b.Write(key)
	b.Write(s)
	b.Write(key)
	digestB := b.Sum(nil)

	a := newHash()
	a.Write(key)
	a.Write(s)
	a.Write(stretch(digestB, len(key)))
	for n := len(key); n > 0; n >>= 1 {
		if n&1 != 0 {
			a.Write(digestB)
		} else {
			a.Write(key)
		}
	}
	digest := a.Sum(nil)

	dp := newHash()
	for range key {
		dp.Write(key)
	}
	p := stretch(dp.Sum(nil), len(key))
	ds := newHash()
	for range 16 + int(digest[0]) {
		ds.Write(s)
	}
	sequence := stretch(ds.Sum(nil), len(s))

	for i := range rounds {
		digest = round(newHash(), digest, p, sequence, i)
	}
	return encode(digest, order)
}

// round is one round of both families: which of password, salt and digest are hashed, and in
// which order, depends on its number.
func round(h hash.Hash, digest, password, salt []byte, i int) []byte {
	if i&1 != 0 {
		h.Write(password)
	} else {
		h.Write(digest)
	}
	if i%3 != 0 {
		h.Write(salt)
	}
	if i%7 != 0 {
		h.Write(password)
	}
	if i&1 != 0 {
		h.Write(digest)
	} else {
		h.Write(password)
	}
	return h.Sum(nil)
}

// stretch repeats a digest to n bytes.
func stretch(digest []byte, n int) []byte {
	out := make([]byte, 0, n+len(digest))
	for len(out) < n {
		out = append(out, digest...)
	}
	return out[:n]
}

// encode writes three bytes as four letters, lowest six bits first. The last group
// has as few letters as its bytes need.
func encode(digest []byte, order []int) string {
	var out strings.Builder
	for i := 0; i < len(order); i += 3 {
		v, letters := 0, 1
		for _, n := range order[i : i+3] {
			v <<= 8
			if n >= 0 {
				v |= int(digest[n])
				letters++
			}
		}
		for range letters {
			out.WriteByte(alphabet[v&63])
			v >>= 6
		}
	}
	return out.String()
}

// orderMD5 is the same for MD5-crypt.
var orderMD5 = []int{0, 6, 12, 1, 7, 13, 2, 8, 14, 3, 9, 15, 4, 10, 5, -1, -1, 11}

// md5Rounds is fixed.
const md5Rounds = 1000

// md5Crypt is FreeBSD's MD5-crypt, which glibc and busybox took over.
func md5Crypt(password, salt string) string {
	key, s := []byte(password), []byte(salt)
	b := md5.New() //nolint:gosec // see above
	b.Write(key)
	b.Write(s)
	b.Write(key)
	digestB := b.Sum(nil)

	a := md5.New() //nolint:gosec // see above
	a.Write(key)
	a.Write([]byte("$1$"))
	a.Write(s)
	a.Write(stretch(digestB, len(key)))
	for n := len(key); n > 0; n >>= 1 {
		if n&1 != 0 {
			a.Write([]byte{0})
		} else {
			a.Write(key[:1])
		}
	}
	digest := a.Sum(nil)
	for i := range md5Rounds {
		digest = round(md5.New(), digest, key, s, i) //nolint:gosec // see above
	}
	return encode(digest, orderMD5)
}
