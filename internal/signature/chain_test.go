package signature_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/signature"
)

var (
	now   = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	today = [2]time.Time{now.Add(-time.Hour), now.Add(time.Hour)}
)

// authority is a certificate with its key.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// request says what a certificate is to be.
type request struct {
	name   string
	by     *authority // nil: itself
	noCA   bool
	noSign bool
	path   int // most authorities below; negative: any number
	valid  [2]time.Time
	key    crypto.Signer // nil: a new one
}

func issue(t *testing.T, r request) authority {
	t.Helper()
	if r.key == nil {
		var err error
		r.key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		require.NoError(t, err)
	}
	if r.valid == [2]time.Time{} {
		r.valid = today
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(r.name)) + 1), Subject: pkix.Name{CommonName: r.name}, NotBefore: r.valid[0], NotAfter: r.valid[1],
		BasicConstraintsValid: true, IsCA: !r.noCA, MaxPathLen: r.path, MaxPathLenZero: r.path == 0, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if r.noCA {
		template.MaxPathLen, template.MaxPathLenZero = -1, false
	}
	if !r.noSign {
		template.KeyUsage |= x509.KeyUsageCertSign
	}
	parent, by := template, r.key
	if r.by != nil {
		parent, by = r.by.certificate, r.by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, r.key.Public(), by)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return authority{certificate, r.key}
}

func trust(authorities ...authority) []signature.Trusted {
	var trusted []signature.Trusted
	for _, a := range authorities {
		trusted = append(trusted, signature.Trusted{ID: a.certificate.Subject.CommonName, Certificate: a.certificate})
	}
	return trusted
}

func TestValidate(t *testing.T) {
	t.Parallel()
	root := issue(t, request{name: "root", path: 2})
	first := issue(t, request{name: "first", by: &root, path: 1})
	second := issue(t, request{name: "second", by: &first, path: 0})
	client := issue(t, request{name: "client", by: &second, noCA: true})
	direct := issue(t, request{name: "direct", by: &root, noCA: true})
	alone := issue(t, request{name: "alone", path: 0})
	namesake := issue(t, request{name: "root", path: 2})
	free := issue(t, request{name: "free", path: -1})
	below := issue(t, request{name: "below", by: &free, path: -1})
	deep := issue(t, request{name: "deep", by: &below, noCA: true})
	narrow := issue(t, request{name: "narrow", path: 0})
	under := issue(t, request{name: "under", by: &narrow, path: 0})
	long := issue(t, request{name: "long", by: &under, noCA: true})
	old := issue(t, request{name: "old", valid: [2]time.Time{now.Add(-2 * time.Hour), now.Add(-time.Hour)}})
	ofOld := issue(t, request{name: "of old", by: &old, noCA: true})
	later := issue(t, request{name: "later", by: &root, noCA: true, valid: [2]time.Time{now.Add(time.Hour), now.Add(2 * time.Hour)}})
	mute := issue(t, request{name: "mute", noSign: true})
	ofMute := issue(t, request{name: "of mute", by: &mute, noCA: true})
	noAuthority := issue(t, request{name: "no authority", noCA: true})

	for name, c := range map[string]struct {
		certificate authority
		trusted     []authority
		want        string
	}{
		"issued by a root":             {direct, []authority{root}, ""},
		"chain of three":               {client, []authority{second, root, first}, ""},
		"self-signed, trusted":         {alone, []authority{root, alone}, ""},
		"no limits":                    {deep, []authority{free, below}, ""},
		"namesake of the root":         {direct, []authority{namesake}, "Could not locate the signing certificate for the base certificate"},
		"namesake beside the root":     {direct, []authority{namesake, root}, ""},
		"nobody trusted":               {direct, nil, "Could not locate the signing certificate"},
		"itself trusted, not its root": {client, []authority{client}, "Could not locate the signing certificate for the base certificate"},
		"no link to the root":          {client, []authority{root, second}, "Could not locate the signing certificate for certificate 'second'"},
		"no root":                      {client, []authority{second, first}, "Could not locate the signing certificate for certificate 'first'"},
		"root alone":                   {client, []authority{root}, "Could not locate the signing certificate for the base certificate"},
		"chain too long":               {long, []authority{under, narrow}, "The signing certificate 'narrow' is not configured to support certificate chains of sufficient length"},
		"out of date":                  {later, []authority{root}, "outside its valid date range"},
		"authority out of date":        {ofOld, []authority{old}, "Could not locate the signing certificate"},
		"authority that may not sign":  {ofMute, []authority{mute}, "Could not locate the signing certificate"},
		"self-signed, no authority":    {noAuthority, []authority{noAuthority}, "Could not locate the signing certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := signature.Validate(c.certificate.certificate, trust(c.trusted...), now)
			if c.want == "" {
				assert.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			assert.ErrorAs(t, err, new(*signature.Error))
		})
	}
}

// Two authorities that have signed each other are no chain, and not an endless one.
func TestValidateEndsInACircle(t *testing.T) {
	t.Parallel()
	one := issue(t, request{name: "one", path: -1})
	two := issue(t, request{name: "two", path: -1, by: &one})
	oneByTwo := issue(t, request{name: "one", path: -1, by: &two, key: one.key})
	leaf := issue(t, request{name: "leaf", by: &two, noCA: true})
	require.ErrorContains(t, signature.Validate(leaf.certificate, trust(oneByTwo, two), now), "Could not locate the signing certificate for certificate 'one'")
	assert.NoError(t, signature.Validate(leaf.certificate, trust(two, one), now))
}

// Go's own functions make no certificates with DSA: this one is put together by hand.
func TestCertificatesSignedWithDSA(t *testing.T) {
	t.Parallel()
	key := dsaKey(t)
	sha256WithDSA := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 2}
	parameters, err := asn1.Marshal(struct{ P, Q, G *big.Int }{key.P, key.Q, key.G})
	require.NoError(t, err)
	y, err := asn1.Marshal(key.Y)
	require.NoError(t, err)
	name, err := asn1.Marshal(pkix.Name{CommonName: "dsa"}.ToRDNSequence())
	require.NoError(t, err)
	constraints, err := asn1.Marshal(struct {
		CA bool
	}{true})
	require.NoError(t, err)
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x04}, BitLength: 6}) // keyCertSign
	require.NoError(t, err)
	type publicKey struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	type body struct {
		Version    int `asn1:"explicit,tag:0"`
		Serial     *big.Int
		Algorithm  pkix.AlgorithmIdentifier
		Issuer     asn1.RawValue
		Validity   struct{ From, To time.Time }
		Subject    asn1.RawValue
		Key        publicKey
		Extensions []pkix.Extension `asn1:"explicit,tag:3"`
	}
	signed := func(by []byte) *x509.Certificate {
		raw, err := asn1.Marshal(body{
			Version: 2, Serial: big.NewInt(1), Algorithm: pkix.AlgorithmIdentifier{Algorithm: sha256WithDSA},
			Issuer: asn1.RawValue{FullBytes: name}, Subject: asn1.RawValue{FullBytes: name}, Validity: struct{ From, To time.Time }{today[0], today[1]},
			Key: publicKey{
				pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}, Parameters: asn1.RawValue{FullBytes: parameters}},
				asn1.BitString{Bytes: y, BitLength: len(y) * 8},
			},
			Extensions: []pkix.Extension{
				{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: constraints},
				{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: usage},
			},
		})
		require.NoError(t, err)
		if by == nil {
			by = signDSA(t, key, digestOf(crypto.SHA256, string(raw)))
		}
		der, err := asn1.Marshal(struct {
			Body      asn1.RawValue
			Algorithm pkix.AlgorithmIdentifier
			Signature asn1.BitString
		}{asn1.RawValue{FullBytes: raw}, pkix.AlgorithmIdentifier{Algorithm: sha256WithDSA}, asn1.BitString{Bytes: by, BitLength: len(by) * 8}})
		require.NoError(t, err)
		c, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		return c
	}
	right, wrong := signed(nil), signed(signDSA(t, key, digestOf(crypto.SHA256, "something else")))
	require.NoError(t, signature.Validate(right, []signature.Trusted{{ID: "dsa", Certificate: right}}, now))
	require.Error(t, signature.Validate(wrong, []signature.Trusted{{ID: "dsa", Certificate: wrong}}, now))

	digest := digestOf(crypto.SHA384, "the image") // longer than the key's subgroup
	claim, err := parse(properties(signDSA(t, key, digest), "SHA-384", "DSA"))
	require.NoError(t, err)
	v, err := claim.Verifier(right)
	require.NoError(t, err)
	assert.NoError(t, v.Verify(digest))
}
