package signature

import (
	"crypto"
	_ "crypto/sha256" // for crypto.Hash.Size and New
	_ "crypto/sha512"
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"
)

// Properties of a signed image.
const (
	PropertySignature   = "img_signature"
	PropertyHash        = "img_signature_hash_method"
	PropertyKeyType     = "img_signature_key_type"
	PropertyCertificate = "img_signature_certificate_uuid"
)

// maxSignature bounds a decoded signature: an RSA key of maxRSABits makes 2 KiB.
const maxSignature = maxRSABits / 8

// Error says why an image's signature, or the certificate that it names, proves nothing.
type Error struct{ Reason string }

// Error implements error.
func (e *Error) Error() string { return e.Reason }

func refuse(format string, args ...any) error { return &Error{Reason: fmt.Sprintf(format, args...)} }

// Claim is what an image's properties say of its signature. Nothing of it is proven.
type Claim struct {
	Signature   []byte
	Hash        crypto.Hash
	KeyType     string // one of those of Nova that are known here
	Certificate string // id of the certificate in the key manager, a UUID
}

// hashMethods are the values of img_signature_hash_method (cursive/signature_utils.py:HASH_METHODS), with Glance's
// name of the same hash.
var hashMethods = map[string]struct {
	hash   crypto.Hash
	digest string
}{
	"SHA-224": {crypto.SHA224, "sha224"},
	"SHA-256": {crypto.SHA256, "sha256"},
	"SHA-384": {crypto.SHA384, "sha384"},
	"SHA-512": {crypto.SHA512, "sha512"},
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// Parse reads the properties of an image. property gives the value of one, "" when the image does not have it.
func Parse(property func(name string) string) (Claim, error) {
	values := map[string]string{}
	for _, name := range []string{PropertySignature, PropertyHash, PropertyKeyType, PropertyCertificate} {
		value := property(name)
		if value == "" {
			return Claim{}, refuse("Required image properties for signature verification do not exist. Cannot verify signature. Missing property: %s", name)
		}
		values[name] = value
	}
	c := Claim{KeyType: values[PropertyKeyType], Certificate: values[PropertyCertificate]}
	var err error
	if c.Signature, err = decodeSignature(values[PropertySignature]); err != nil {
		return Claim{}, err
	}
	method, ok := hashMethods[values[PropertyHash]]
	if !ok {
		return Claim{}, refuse("Invalid signature hash method: %s", printable(values[PropertyHash]))
	}
	c.Hash = method.hash
	if _, ok := keyTypes[c.KeyType]; !ok {
		return Claim{}, refuse("Invalid signature key type: %s", printable(c.KeyType))
	}
	if !uuidForm.MatchString(c.Certificate) {
		return Claim{}, refuse("%s is not a UUID: %s", PropertyCertificate, printable(c.Certificate))
	}
	return c, nil
}

// decodeSignature takes base64 with white space in it, as base64(1) writes it.
func decodeSignature(text string) ([]byte, error) {
	text = strings.Join(strings.Fields(text), "")
	if len(text) > base64.StdEncoding.EncodedLen(maxSignature) {
		return nil, refuse("The signature is longer than %d bytes", maxSignature)
	}
	signature, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, refuse("The signature data was not properly encoded using base64")
	}
	return signature, nil
}

// printable makes a foreign value fit for a message.
func printable(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Trim(fmt.Sprintf("%+q", s), `"`)
}

// Digest is the hash of the image's bytes that the signature is about, by Glance's name: sha256, for example.
func (c *Claim) Digest() string {
	for _, method := range hashMethods {
		if method.hash == c.Hash {
			return method.digest
		}
	}
	return ""
}
