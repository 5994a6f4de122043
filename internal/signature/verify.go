package signature

import (
	"crypto"
	"crypto/dsa" //nolint:staticcheck // a key type of Nova's; nothing is signed with it here
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
)

const (
	// maxRSABits is OpenSSL's bound of what it verifies with.
	maxRSABits = 16384
	// maxDSABits is the largest size of FIPS 186.
	maxDSABits = 3072
)

// keyType checks that a certificate's key is of the kind that the image names, and what it has signed.
type keyType struct {
	check  func(key any) error
	verify func(key any, hash crypto.Hash, digest, signature []byte) error
}

// keyTypes are the values of img_signature_key_type (cursive/signature_utils.py). Those of binary curves (ECC_SECT…) are unknown to Go,
// as they are to many an OpenSSL: cursive registers them only where they work.
var keyTypes = map[string]keyType{
	"RSA-PSS":       {checkRSA, verifyPSS},
	"DSA":           {checkDSA, verifyDSA},
	"ECC_SECP384R1": ecc(elliptic.P384()),
	"ECC_SECP521R1": ecc(elliptic.P521()),
}

// Verifier has the key of a claim's certificate.
type Verifier struct {
	claim Claim
	kind  keyType
	key   any
}

// Verifier returns what verifies the claim with the certificate's key.
func (c *Claim) Verifier(certificate *x509.Certificate) (*Verifier, error) {
	kind, ok := keyTypes[c.KeyType]
	if !ok {
		return nil, refuse("Invalid signature key type: %s", printable(c.KeyType))
	}
	if err := kind.check(certificate.PublicKey); err != nil {
		return nil, err
	}
	return &Verifier{claim: *c, kind: kind, key: certificate.PublicKey}, nil
}

// Verify compares the signature with the hash of the image's bytes.
func (v *Verifier) Verify(digest []byte) error {
	if len(digest) != v.claim.Hash.Size() {
		return refuse("The image has no hash of the kind that was signed")
	}
	return v.kind.verify(v.key, v.claim.Hash, digest, v.claim.Signature)
}

var errMismatch = &Error{Reason: "The signature is not that of the image's data by the certificate's key"}

func wrongKey(keyType string) error {
	return refuse("Invalid public key type for signature key type: %s", keyType)
}

func checkRSA(key any) error {
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return wrongKey("RSA-PSS")
	}
	if bits := public.N.BitLen(); bits > maxRSABits {
		return refuse("The certificate's RSA key has %d bits, more than %d", bits, maxRSABits)
	}
	return nil
}

// verifyPSS wants the longest salt that fits, as cursive does (create_verifier_for_pss) and as openssl dgst makes it. A shorter one would
// be as good a proof; it is refused because the other hosts of the cloud refuse it, and the message says so.
func verifyPSS(key any, hash crypto.Hash, digest, signature []byte) error {
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return wrongKey("RSA-PSS")
	}
	salt := (public.N.BitLen()-1+7)/8 - hash.Size() - 2
	if salt <= 0 { // which no key of 1024 bits has, and Go takes no shorter one
		return refuse("The certificate's RSA key is too short for the hash method")
	}
	if rsa.VerifyPSS(public, hash, digest, signature, &rsa.PSSOptions{SaltLength: salt, Hash: hash}) == nil {
		return nil
	}
	if err := rsa.VerifyPSS(public, hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: hash}); err != nil {
		return errMismatch
	}
	return refuse("The signature is right, but its salt is not the longest possible (openssl dgst -sigopt rsa_pss_saltlen:max)")
}

// ecc is the key type of one curve. Cursive takes a key of any curve; here it must be the one that the image names.
func ecc(curve elliptic.Curve) keyType {
	onCurve := func(key any) (*ecdsa.PublicKey, error) {
		public, ok := key.(*ecdsa.PublicKey)
		if !ok {
			return nil, refuse("Invalid public key type for signature key type: the key is not one of %s", curve.Params().Name)
		}
		if public.Curve != curve {
			return nil, refuse("Invalid public key type for signature key type: the key is one of %s, not of %s", public.Curve.Params().Name, curve.Params().Name)
		}
		return public, nil
	}
	return keyType{
		check: func(key any) error {
			_, err := onCurve(key)
			return err
		},
		verify: func(key any, _ crypto.Hash, digest, signature []byte) error {
			public, err := onCurve(key)
			if err != nil {
				return err
			}
			if !ecdsa.VerifyASN1(public, digest, signature) {
				return errMismatch
			}
			return nil
		},
	}
}

func checkDSA(key any) error {
	public, ok := key.(*dsa.PublicKey)
	if !ok {
		return wrongKey("DSA")
	}
	p, q := public.P.BitLen(), public.Q.BitLen()
	if p < 1024 || p > maxDSABits || q != 160 && q != 224 && q != 256 {
		return refuse("The certificate's DSA key has %d bits and a subgroup of %d: none of FIPS 186", p, q)
	}
	return nil
}

func verifyDSA(key any, _ crypto.Hash, digest, signature []byte) error {
	if err := checkDSA(key); err != nil {
		return err
	}
	public, ok := key.(*dsa.PublicKey)
	if !ok {
		return wrongKey("DSA")
	}
	var parts struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(signature, &parts); err != nil || len(rest) > 0 {
		return errMismatch
	}
	// The standard wants the leftmost bits of the hash; the package leaves that to its caller.
	if n := public.Q.BitLen() / 8; len(digest) > n {
		digest = digest[:n]
	}
	if !dsa.Verify(public, digest, parts.R, parts.S) {
		return errMismatch
	}
	return nil
}
