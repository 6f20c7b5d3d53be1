-- Append an archive's audit events to a staged stream. KEYS[1] is that stream, and no other key is
-- given.
for _, event in ipairs(cjson.decode(ARGV[1]).events) do
  redis.call('XADD', KEYS[1], event.revision .. '-0', unpack(event.fields))
end
