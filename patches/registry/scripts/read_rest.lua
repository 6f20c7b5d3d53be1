-- Read the API keys and the audit trail, for an export.
return {redis.call('GET', REVISION) or '0', redis.call('HGETALL', API_KEYS),
        redis.call('XRANGE', CHANGES, '-', '+')}
