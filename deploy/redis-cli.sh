#!/bin/sh
# The real redis-cli, signed in as the administrator: `docker compose exec redis redis-cli ...`.
REDISCLI_AUTH="$(cat /run/keys/admin_password)" exec /usr/bin/redis-cli --user admin "$@"
