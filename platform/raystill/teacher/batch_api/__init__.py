"""The Batch API of closed teachers: files of requests, answered within a day at a lower price."""
