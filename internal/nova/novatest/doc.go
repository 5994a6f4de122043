// Package novatest is Nova's side of the message bus for unit tests: a conductor with a
// small database behind it, which checks expected states as the real one does, keeps
// what was asked as a transcript, and fails where a test says so.
package novatest
