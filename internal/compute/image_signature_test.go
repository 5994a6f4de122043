package compute

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack/barbican"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/signature"
	"github.com/compute-agent/compute-agent/rpc"
)

// fakeKeys is a key manager with certificates.
type fakeKeys struct {
	mu           sync.Mutex // guards the fields below
	certificates map[string]*x509.Certificate
	tokens       []reqctx.Secret // of those who asked
	err          error
}

func (k *fakeKeys) Certificate(ctx context.Context, id string) (*x509.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tokens = append(k.tokens, reqctx.From(ctx).AuthToken)
	if k.err != nil {
		return nil, k.err
	}
	if c := k.certificates[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("%w: 404", barbican.ErrNotFound)
}

func (k *fakeKeys) add(id string, c *x509.Certificate) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.certificates == nil {
		k.certificates = map[string]*x509.Certificate{}
	}
	k.certificates[id] = c
	return id
}

const (
	rootCertificate    = "00000000-0000-4000-8000-0000000000aa"
	signerCertificate  = "00000000-0000-4000-8000-0000000000bb"
	foreignCertificate = "00000000-0000-4000-8000-0000000000cc"
)

// signer has a key, whose certificate an authority has issued; both are in the key manager.
type signer struct{ key *ecdsa.PrivateKey }

func newSigner(t testing.TB, keys *fakeKeys) *signer {
	t.Helper()
	issue := func(name string, ca bool, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		require.NoError(t, err)
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			BasicConstraintsValid: true, IsCA: ca, MaxPathLen: -1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		}
		if parent == nil {
			parent, by = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
		require.NoError(t, err)
		c, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		return c, key
	}
	root, rootKey := issue("root", true, nil, nil)
	c, key := issue("signer", false, root, rootKey)
	foreign, _ := issue("foreign", true, nil, nil)
	keys.add(rootCertificate, root)
	keys.add(signerCertificate, c)
	keys.add(foreignCertificate, foreign)
	return &signer{key}
}

// sign gives the properties of an image with these bytes.
func (s *signer) sign(t testing.TB, hash crypto.Hash, data []byte) map[string]any {
	t.Helper()
	h := hash.New()
	_, _ = h.Write(data)
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, h.Sum(nil))
	require.NoError(t, err)
	return map[string]any{
		signature.PropertySignature: base64.StdEncoding.EncodeToString(sig), signature.PropertyHash: hash.String(),
		signature.PropertyKeyType: "ECC_SECP384R1", signature.PropertyCertificate: signerCertificate,
	}
}

func trusting(ids ...string) *object.TrustedCerts { return &object.TrustedCerts{IDs: ids} }

// buildTrusting are the arguments of a build whose user names certificates.
func (w *world) buildTrusting(ids ...string) rpc.Args {
	w.t.Helper()
	args := w.buildArgs(nil)
	if ids == nil {
		return args
	}
	var inst map[string]any
	require.NoError(w.t, json.Unmarshal(args["instance"], &inst))
	inst["nova_object.data"].(map[string]any)["trusted_certs"] = map[string]any{
		"nova_object.name": "TrustedCerts", "nova_object.namespace": "nova", "nova_object.version": "1.0", "nova_object.data": map[string]any{"ids": ids},
	}
	args["instance"] = novatest.Raw(inst)
	w.nova.SetInstance(fieldsOf(w.t, args["instance"]))
	return args
}

// TestSignedImages: which images boot, by what the host and the user want, and what the others' faults say.
func TestSignedImages(t *testing.T) {
	t.Parallel()
	const failed = "Signature verification for the image failed: "
	verify := func(o *Options) { o.VerifySignatures = true }
	validate := func(ids ...string) func(o *Options) {
		return func(o *Options) { o.ValidateCertificate, o.TrustedCertificates = true, ids }
	}
	both := func(ids ...string) func(o *Options) {
		return func(o *Options) { verify(o); validate(ids...)(o) }
	}
	without := func(name string) func(p map[string]any) {
		return func(p map[string]any) { delete(p, name) }
	}
	set := func(name, value string) func(p map[string]any) {
		return func(p map[string]any) { p[name] = value }
	}
	for name, c := range map[string]struct {
		host   func(o *Options)
		user   []string
		change func(p map[string]any)
		keys   error
		fault  string // "": it boots; "-": the build is rescheduled
	}{
		"nothing wanted, bad signature":     {nil, nil, set(signature.PropertySignature, "????"), nil, ""},
		"signed":                            {verify, nil, nil, nil, ""},
		"not signed":                        {verify, nil, without(signature.PropertySignature), nil, failed + "Required image properties for signature verification do not exist. Cannot verify signature. Missing property: img_signature."},
		"no base64":                         {verify, nil, set(signature.PropertySignature, "fake_signature"), nil, failed + "The signature data was not properly encoded using base64."},
		"signature of something else":       {verify, nil, set(signature.PropertySignature, "c29tZXRoaW5nIGVsc2U="), nil, failed + "The signature is not that of the image's data"},
		"certificate is gone":               {verify, nil, set(signature.PropertyCertificate, goodImage), nil, failed + "Certificate not found with ID: " + goodImage},
		"another's certificate":             {verify, nil, set(signature.PropertyCertificate, foreignCertificate), nil, failed + "The signature is not that of the image's data"},
		"certificate not readable":          {verify, nil, nil, fmt.Errorf("%w: 403 Forbidden", barbican.ErrRefused), failed + "Unable to retrieve certificate with ID: " + signerCertificate},
		"key manager not reached":           {verify, nil, nil, errBoom, "-"},
		"user trusts the root":              {nil, []string{rootCertificate}, nil, nil, ""},
		"user trusts others too":            {both(foreignCertificate), []string{foreignCertificate, goodImage, rootCertificate}, nil, nil, ""},
		"user trusts somebody else":         {nil, []string{foreignCertificate}, nil, nil, "Image signature certificate validation failed for certificate: " + signerCertificate + ". Certificate chain building failed."},
		"user's certificate is gone":        {nil, []string{goodImage}, nil, nil, "Image signature certificate validation failed for certificate: " + signerCertificate},
		"user trusts, image is not signed":  {nil, []string{rootCertificate}, without(signature.PropertyHash), nil, failed + "Required image properties"},
		"host trusts the root":              {both(rootCertificate), nil, nil, nil, ""},
		"host trusts it, verify is off":     {validate(rootCertificate), nil, set(signature.PropertySignature, "????"), nil, failed},
		"host trusts somebody else":         {both(foreignCertificate), nil, nil, nil, "Image signature certificate validation failed"},
		"user's word counts for the host's": {both(rootCertificate), []string{foreignCertificate}, nil, nil, "Image signature certificate validation failed"},
		"host trusts nobody":                {both(), nil, nil, nil, "no trusted certificate IDs were provided"},
		"validate alone does nothing":       {validate(), nil, without(signature.PropertyHash), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var change []func(*Options)
			if c.host != nil {
				change = append(change, c.host)
			}
			w := newWorld(t, change...)
			properties := newSigner(t, w.keys).sign(t, crypto.SHA256, w.glance.data)
			if c.change != nil {
				c.change(properties)
			}
			w.keys.err = c.keys
			w.glance.images.add(imageID, "active", properties)
			w.plugEvents("completed")
			_, err := w.call(user(t), "build_and_run_instance", w.buildTrusting(c.user...))
			require.NoError(t, err, "a cast has no answer")
			switch c.fault {
			case "":
				require.Equal(t, "active/-/"+testHost, w.nova.States(uuid), w.nova.Faults())
			case "-":
				w.requireOutcome(failing{name: name})
			default:
				w.requireOutcome(failing{name: name, fault: c.fault})
			}
			for _, token := range w.keys.tokens {
				require.Equal(t, "user-token", token.Reveal(), "as the user")
			}
		})
	}
}

// TestStoredImageIsNotProven: what the store has, it has for those who want no proof; for others it is not fetched
// again, unless the hash that was signed is unknown.
func TestStoredImageIsNotProven(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	signer := newSigner(t, w.keys)
	fetched := func() int {
		return len(slices.DeleteFunc(w.trail.all(), func(line string) bool {
			return !strings.HasPrefix(line, "glance GET") || !strings.HasSuffix(line, "/file")
		}))
	}
	get := func(certs *object.TrustedCerts) error {
		img := w.imageFor(imageID)
		_, err := w.syncImage(user(t), &img, w.trust(certs))
		return err
	}
	bad := signer.sign(t, crypto.SHA256, []byte("another image"))
	w.glance.images.add(imageID, "active", bad)
	require.NoError(t, get(nil))
	require.ErrorContains(t, get(trusting(rootCertificate)), "not that of the image's data")
	require.NoError(t, get(nil), "those who want no proof have it still")
	require.Equal(t, 1, fetched())

	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA512} {
		w.glance.images.add(imageID, "active", signer.sign(t, hash, w.glance.data))
		require.NoError(t, get(trusting(rootCertificate)))
		require.Equal(t, 1, fetched(), "the store knows this hash of every image")
	}
	w.glance.images.add(imageID, "active", signer.sign(t, crypto.SHA384, w.glance.data))
	require.NoError(t, get(trusting(rootCertificate)))
	require.NoError(t, get(trusting(rootCertificate)))
	require.Equal(t, 2, fetched())
	require.ErrorContains(t, get(trusting(foreignCertificate)), "Certificate chain building failed")
	w.glance.images.add(imageID, "active", signer.sign(t, crypto.SHA384, []byte("another image")))
	require.ErrorContains(t, get(trusting(rootCertificate)), "not that of the image's data")
}

// imageFor is the fake Glance's image as a message has it.
func (w *world) imageFor(id string) object.Image {
	w.t.Helper()
	var image object.Image
	require.NoError(w.t, json.Unmarshal(w.capturedBuild()["image"], &image))
	image.ID = id
	return image
}

// TestSignedSplitImage: the templates in its metadata half run on the host's behalf, so that half is signed as well.
func TestSignedSplitImage(t *testing.T) {
	t.Parallel()
	metadata := []byte("architecture: x86_64\ncreation_date: 1\n")
	w := newWorld(t, func(o *Options) { o.VerifySignatures = true })
	signer := newSigner(t, w.keys)
	w.glance.more = map[string]fakeImage{otherImage: {data: metadata}}
	get := func(ofMetadata map[string]any) error {
		w.glance.images.add(imageID, "active", signer.sign(t, crypto.SHA256, w.glance.data))
		w.glance.images.add(otherImage, "active", ofMetadata)
		img := w.imageFor(imageID)
		img.Properties = map[string]any{glanceimage.MetadataProperty: otherImage}
		_, err := w.syncImage(user(t), &img, w.trust(nil))
		return err
	}
	require.ErrorContains(t, get(nil), "Required image properties")
	require.ErrorContains(t, get(signer.sign(t, crypto.SHA384, []byte("other metadata"))), "not that of the image's data")
	require.NoError(t, get(signer.sign(t, crypto.SHA384, metadata)))
	require.NoError(t, get(signer.sign(t, crypto.SHA256, metadata)))
}

func TestRebuildWithAnUnsignedImage(t *testing.T) {
	t.Parallel()
	w := built(t)
	signer := newSigner(t, w.keys)
	w.opts.VerifySignatures, w.Manager.opts.VerifySignatures = true, true
	w.glance.images.add(otherImage, "active", nil)
	_, err := w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, otherImage))
	require.NoError(t, err)
	require.Equal(t, "error/-/"+testHost, w.nova.States(uuid))
	require.Contains(t, w.nova.Faults()[0], "Signature verification for the image failed")
	w.glance.images.add(otherImage, "active", signer.sign(t, crypto.SHA512, w.glance.data))
	_, err = w.operate("rebuild_instance", object.TaskStateRebuilding, rebuildArgs(t, otherImage))
	require.NoError(t, err)
	require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
	w.done()
}

// TestCacheSignedImages: what is cached for nobody in particular must satisfy the host.
func TestCacheSignedImages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.VerifySignatures = true })
	signer := newSigner(t, w.keys)
	w.glance.images.add(imageID, "active", nil)
	w.glance.images.add(otherImage, "active", signer.sign(t, crypto.SHA256, w.glance.data))
	require.Equal(t, map[string]string{imageID: "error", otherImage: "cached"}, w.cache(imageID, otherImage))
}
