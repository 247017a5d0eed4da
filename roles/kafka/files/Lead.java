// Lead.java SERVERS TOPIC:PARTITION:BROKER...   Makes that broker the leader of that partition, which has none.
// An unclean election takes the first replica that runs, so the broker is made the first one before.

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.TopicPartition;

class Lead {
    public static void main(String[] arguments) throws Exception {
        Map<TopicPartition, Integer> leaders = new HashMap<>();
        Set<String> names = new HashSet<>();
        for (String each : List.of(arguments).subList(1, arguments.length)) {
            String[] part = each.split(":");
            leaders.put(new TopicPartition(part[0], Integer.parseInt(part[1])), Integer.parseInt(part[2]));
            names.add(part[0]);
        }
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", arguments[0], "default.api.timeout.ms", "30000"))) {
            Map<TopicPartition, Optional<NewPartitionReassignment>> orders = new HashMap<>();
            admin.describeTopics(names).allTopicNames().get().forEach((name, topic) -> topic.partitions().forEach(partition -> {
                TopicPartition key = new TopicPartition(name, partition.partition());
                Integer leader = leaders.get(key);
                if (leader != null) {
                    List<Integer> order = new ArrayList<>(List.of(leader));
                    partition.replicas().stream().map(node -> node.id()).filter(id -> !id.equals(leader)).forEach(order::add);
                    orders.put(key, Optional.of(new NewPartitionReassignment(order)));
                }
            }));
            admin.alterPartitionReassignments(orders).all().get();
            admin.electLeaders(ElectionType.UNCLEAN, leaders.keySet()).all().get();
        }
    }
}
