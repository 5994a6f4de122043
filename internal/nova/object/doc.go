// Package object holds Nova's versioned objects as they travel over RPC
// (oslo.versionedobjects base.py, nova/objects).
//
// Every type embeds Header, which keeps each field exactly as it was received:
// fields that this program does not know, nulls and the difference between "null"
// and "not set" survive a decode and an encode. The typed fields beside it are the
// reading view. A typed field that is assigned a new value is encoded with that
// value and listed among the object's changes; a field that was not set and still
// has its zero value stays unset (Mark sets it all the same).
//
// Nullable strings are plain strings with "" for null: no field of these objects
// gives the two different meanings, and an untouched field is sent back as it came.
// A zero DateTime is null. Pointers are used where zero and null differ.
//
// Foreign bytes never cause a panic: an object of another class or major version,
// or with a field of the wrong type, is a *FormatError.
package object
