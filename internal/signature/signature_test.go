package signature_test

import (
	"crypto"
	"crypto/dsa" //nolint:staticcheck // a key type of Nova's
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/signature"
)

const certificateID = "125e6199-2de4-46e3-b091-8e2401ef0d63"

// properties of a signed image.
func properties(sig []byte, hash, keyType string) map[string]string {
	return map[string]string{
		signature.PropertySignature:   base64.StdEncoding.EncodeToString(sig),
		signature.PropertyHash:        hash,
		signature.PropertyKeyType:     keyType,
		signature.PropertyCertificate: certificateID,
	}
}

func parse(p map[string]string) (signature.Claim, error) {
	return signature.Parse(func(name string) string { return p[name] })
}

// verify goes the whole way: properties, key, hash.
func verify(p map[string]string, key any, digest []byte) error {
	claim, err := parse(p)
	if err != nil {
		return err
	}
	v, err := claim.Verifier(&x509.Certificate{PublicKey: key})
	if err != nil {
		return err
	}
	return v.Verify(digest)
}

var hashes = map[string]crypto.Hash{"SHA-224": crypto.SHA224, "SHA-256": crypto.SHA256, "SHA-384": crypto.SHA384, "SHA-512": crypto.SHA512}

func digestOf(hash crypto.Hash, data string) []byte {
	h := hash.New()
	_, _ = h.Write([]byte(data))
	return h.Sum(nil)
}

func maxSalt(key *rsa.PrivateKey, hash crypto.Hash) int {
	return (key.N.BitLen()-1+7)/8 - hash.Size() - 2
}

func dsaKey(t *testing.T) *dsa.PrivateKey {
	t.Helper()
	key := new(dsa.PrivateKey)
	require.NoError(t, dsa.GenerateParameters(&key.Parameters, rand.Reader, dsa.L1024N160))
	require.NoError(t, dsa.GenerateKey(key, rand.Reader))
	return key
}

func signDSA(t *testing.T, key *dsa.PrivateKey, digest []byte) []byte {
	t.Helper()
	r, s, err := dsa.Sign(rand.Reader, key, digest[:min(len(digest), key.Q.BitLen()/8)])
	require.NoError(t, err)
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	require.NoError(t, err)
	return der
}

func TestVerify(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	require.NoError(t, err)
	dsaKey := dsaKey(t)
	for keyType, sign := range map[string]func(hash crypto.Hash, digest []byte) ([]byte, any){
		"RSA-PSS": func(hash crypto.Hash, digest []byte) ([]byte, any) {
			sig, err := rsa.SignPSS(rand.Reader, rsaKey, hash, digest, &rsa.PSSOptions{SaltLength: maxSalt(rsaKey, hash)})
			require.NoError(t, err)
			return sig, rsaKey.Public()
		},
		"ECC_SECP384R1": func(_ crypto.Hash, digest []byte) ([]byte, any) {
			sig, err := ecdsa.SignASN1(rand.Reader, p384, digest)
			require.NoError(t, err)
			return sig, p384.Public()
		},
		"ECC_SECP521R1": func(_ crypto.Hash, digest []byte) ([]byte, any) {
			sig, err := ecdsa.SignASN1(rand.Reader, p521, digest)
			require.NoError(t, err)
			return sig, p521.Public()
		},
		"DSA": func(_ crypto.Hash, digest []byte) ([]byte, any) {
			return signDSA(t, dsaKey, digest), &dsaKey.PublicKey
		},
	} {
		for method, hash := range hashes {
			digest := digestOf(hash, "the image")
			sig, key := sign(hash, digest)
			p := properties(sig, method, keyType)
			require.NoError(t, verify(p, key, digest), "%s with %s", keyType, method)
			require.ErrorContains(t, verify(p, key, digestOf(hash, "another image")), "not that of the image's data", "%s with %s", keyType, method)
			require.ErrorContains(t, verify(p, key, digest[1:]), "no hash of the kind")
			sig[len(sig)/2] ^= 1
			require.ErrorContains(t, verify(properties(sig, method, keyType), key, digest), "not that of the image's data", "%s with %s", keyType, method)
		}
	}
}

func TestSignatureByAnotherKey(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	dsaKey := dsaKey(t)
	small := dsaKey.PublicKey
	small.Q = big.NewInt(101)
	for name, c := range map[string]struct {
		keyType string
		key     any
		want    string
	}{
		"ECDSA for RSA":     {"RSA-PSS", p256.Public(), "Invalid public key type for signature key type: RSA-PSS"},
		"RSA for DSA":       {"DSA", rsaKey.Public(), "Invalid public key type for signature key type: DSA"},
		"RSA for ECDSA":     {"ECC_SECP384R1", rsaKey.Public(), "the key is not one of P-384"},
		"another curve":     {"ECC_SECP384R1", p256.Public(), "the key is one of P-256, not of P-384"},
		"foreign key":       {"RSA-PSS", "no key", "Invalid public key type"},
		"DSA, odd subgroup": {"DSA", &small, "a subgroup of 7"},
		"RSA, enormous":     {"RSA-PSS", &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 20000), E: 3}, "20001 bits"},
	} {
		err := verify(properties([]byte("signature"), "SHA-256", c.keyType), c.key, digestOf(crypto.SHA256, ""))
		require.ErrorContains(t, err, c.want, name)
		assert.ErrorAs(t, err, new(*signature.Error), name)
	}
}

func TestSaltOfAnotherLength(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	digest := digestOf(crypto.SHA256, "the image")
	sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	require.NoError(t, err)
	require.ErrorContains(t, verify(properties(sig, "SHA-256", "RSA-PSS"), key.Public(), digest), "rsa_pss_saltlen:max")
	pkcs, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest)
	require.NoError(t, err)
	require.ErrorContains(t, verify(properties(pkcs, "SHA-256", "RSA-PSS"), key.Public(), digest), "not that of the image's data")
}

func TestShortKey(t *testing.T) {
	t.Parallel()
	key := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 511, 1), E: 3}
	require.ErrorContains(t, verify(properties(make([]byte, 64), "SHA-512", "RSA-PSS"), key, digestOf(crypto.SHA512, "")), "too short for the hash method")
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(p map[string]string)
		want   string
	}{
		"no signature":     {func(p map[string]string) { delete(p, signature.PropertySignature) }, "Missing property: img_signature"},
		"no hash":          {func(p map[string]string) { delete(p, signature.PropertyHash) }, "Missing property: img_signature_hash_method"},
		"no key type":      {func(p map[string]string) { delete(p, signature.PropertyKeyType) }, "Missing property: img_signature_key_type"},
		"no certificate":   {func(p map[string]string) { delete(p, signature.PropertyCertificate) }, "Missing property: img_signature_certificate_uuid"},
		"no base64":        {func(p map[string]string) { p[signature.PropertySignature] = "fake_signature" }, "not properly encoded using base64"},
		"long signature":   {func(p map[string]string) { p[signature.PropertySignature] = strings.Repeat("A", 65536) }, "longer than 2048 bytes"},
		"weak hash":        {func(p map[string]string) { p[signature.PropertyHash] = "MD5" }, "Invalid signature hash method: MD5"},
		"hash by Glance":   {func(p map[string]string) { p[signature.PropertyHash] = "sha256" }, "Invalid signature hash method: sha256"},
		"binary curve":     {func(p map[string]string) { p[signature.PropertyKeyType] = "ECC_SECT571K1" }, "Invalid signature key type: ECC_SECT571K1"},
		"control in type":  {func(p map[string]string) { p[signature.PropertyKeyType] = "a\nb\x1b" }, `Invalid signature key type: a\nb\x1b`},
		"path as id":       {func(p map[string]string) { p[signature.PropertyCertificate] = "../containers/x" }, "is not a UUID: ../containers/x"},
		"id with a query":  {func(p map[string]string) { p[signature.PropertyCertificate] = certificateID + "?a=b" }, "is not a UUID"},
		"id with new line": {func(p map[string]string) { p[signature.PropertyCertificate] = certificateID + "\n" }, "is not a UUID"},
	} {
		p := properties([]byte("signature"), "SHA-256", "RSA-PSS")
		c.change(p)
		_, err := parse(p)
		require.ErrorContains(t, err, c.want, name)
		assert.ErrorAs(t, err, new(*signature.Error), name)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	p := properties([]byte("a signature of some length"), "SHA-384", "DSA")
	p[signature.PropertySignature] = p[signature.PropertySignature][:7] + "\n " + p[signature.PropertySignature][7:] + "\n" // base64 without -w 0
	claim, err := parse(p)
	require.NoError(t, err)
	assert.Equal(t, signature.Claim{Signature: []byte("a signature of some length"), Hash: crypto.SHA384, KeyType: "DSA", Certificate: certificateID}, claim)
	assert.Equal(t, "sha384", claim.Digest())
}

func FuzzParse(f *testing.F) {
	f.Add("c2lnbmF0dXJl", "SHA-256", "RSA-PSS", certificateID)
	f.Add("c2ln\nbmF0dXJl==", "SHA-512", "ECC_SECP384R1", certificateID)
	f.Add("", "sha256", "ECC_SECT571K1", "../..")
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(f, err)
	dsaKey := new(dsa.PrivateKey)
	require.NoError(f, dsa.GenerateParameters(&dsaKey.Parameters, rand.Reader, dsa.L1024N160))
	require.NoError(f, dsa.GenerateKey(dsaKey, rand.Reader))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(f, err)
	keys := []any{key.Public(), &dsaKey.PublicKey, rsaKey.Public()}
	f.Fuzz(func(t *testing.T, sig, hash, keyType, id string) {
		claim, err := parse(map[string]string{
			signature.PropertySignature: sig, signature.PropertyHash: hash, signature.PropertyKeyType: keyType, signature.PropertyCertificate: id,
		})
		if err != nil {
			require.ErrorAs(t, err, new(*signature.Error))
			return
		}
		require.Len(t, claim.Certificate, 36)
		require.NotEmpty(t, claim.Digest())
		for _, key := range keys {
			v, err := claim.Verifier(&x509.Certificate{PublicKey: key})
			if err == nil {
				require.Error(t, v.Verify(digestOf(claim.Hash, "nobody has signed this")))
			}
		}
	})
}
