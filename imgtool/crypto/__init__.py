"""Encryption of disks: block ciphers over sectors, and LUKS 1 key management.

The ciphers themselves are those of the package ``cryptography``, which comes with the extra
``imgtool[crypto]``. It is imported when something is encrypted or decrypted, and not before.
"""
