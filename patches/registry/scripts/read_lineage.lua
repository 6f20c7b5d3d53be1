-- Read which registry this is, and how much it holds.
return {tonumber(redis.call('GET', REVISION) or '0'), last_mark(), identity(),
        redis.call('HLEN', TASKS), redis.call('HLEN', API_KEYS)}
